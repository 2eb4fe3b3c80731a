"""Check that comments, docstrings, messages and pages are written in plain technical English.

    python -m tests.support.plain_english [FILE...]

Each turn of phrase in `AVOID` hides the role that acts or the thing that is meant. Some are right in their place: a few in
each thousand words are allowed, and none of them is an error by itself.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

#: Hits allowed in 1,000 words.
ALLOWED = 0.4
#: A turn of phrase, and the remedy.
AVOID = {
    r"(?:^|[.:;,(] )(?:what|who(?:ever)?) (?:is|are|was|were|has|have|can|may|does|do|only|comes?|it|they|a|the)\b": (
        "name the role or the thing"
    ),
    r"\b(?:whoever|nobody|somebody)\b": "name the role: caller, client, engine, operator, peer",
    r"\b(?:is|are|was|were) no (?!longer|more|less|such|other|way|reason|need)\w": "write 'is not a'",
    r"\bso (?:many|much|long|often)\b(?! as)": "write the number, or 'that long'",
    r"\b(?:is|are|was|be) told\b|\bhears? of\b|\b(?:tells?|says?|told|said) of\b": "write report, notify, log or return",
    r"\bany more\b|\bleaves? away\b|\bof (?:its|their) own\b": "write no longer, omit, separate",
    r"\b(?:long|short) way\b|\bplain requests?\b": "write fast path, slow path",
    r"\b(?:is|are|was|were) out\b|\b(?:once|while|until) (?:it|they) (?:is|are) there\b": "write in flight, present",
    r"\b(?:he|his|him)\b": "a process is 'it'",
}
_FOLDERS = ("shmserve", "client", "daemon", "native", "docs", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of prose in a file: comments, docstrings and texts of messages, or a page without its code."""
    text = path.read_text()
    if path.suffix == ".md":
        text = re.sub(r"```.*?```", lambda block: "\n" * block.group().count("\n"), text, flags=re.DOTALL)
        yield from enumerate(text.splitlines(), 1)
    elif path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string.lstrip("#: ")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") > 2:
                yield from enumerate(node.value.splitlines(), node.lineno)
    else:
        for comment in re.finditer(r"/\*.*?\*/|//[^\n]*", text, re.DOTALL):
            lines = enumerate(comment.group().splitlines(), 1 + text.count("\n", 0, comment.start()))
            yield from ((number, line.strip(" /*")) for number, line in lines)


def main() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *(sys.argv[1:] or _FOLDERS)], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    words, hits = 0, []
    for path in map(Path, filter(None, listed)):
        if path.suffix in (".py", ".md", ".c", ".h") and not path.is_symlink():
            for number, line in prose(path):
                words += len(line.split())
                hits += [
                    f"{path}:{number}: {match.group().strip(' .:;,(')!r}: {remedy}"
                    for pattern, remedy in AVOID.items()
                    for match in re.finditer(pattern, line, re.IGNORECASE)
                ]
    if len(hits) * 1000 > ALLOWED * words:
        print(*hits, sep="\n")
        sys.exit(f"{len(hits)} turns of phrase in {words} words; at most {ALLOWED} in 1,000 are allowed")


if __name__ == "__main__":
    main()
