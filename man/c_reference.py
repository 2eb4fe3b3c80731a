"""Generator of docs/reference/c-reference.md from the headers of libshmserve: `make man`; `--check` reports whether it is current."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = ROOT / "native/include"
PAGE = ROOT / "docs/reference/c-reference.md"
#: The headers of C++ in the order of the page, with what each is for.
CPP = {
    "shmserve.hpp": "Clients, loans and replies",
    "shmserve_entries.hpp": "Entries of a structure",
    "shmserve_result.hpp": "Results",
    "shmserve_span.hpp": "Spans",
    "shmserve_chunk_options.hpp": "Options of action chunks",
    "shmserve_chunk_step.hpp": "Steps of action chunks",
    "shmserve_chunk_rules.hpp": "Rules of action chunks",
    "shmserve_action_chunks.hpp": "Action chunks of a service",
}
_INTRODUCTION = """\
# Reference of the C and C++ headers

`python man/c_reference.py` makes this page of [native/include/](../../native/include/shmserve.h), and a test compares both: change the
comments there. [c-client.md](../how-to/c-client.md) is the guide. **[S]** calls may allocate and block, **[R]** calls are for real-time threads.
"""


class Declared(NamedTuple):
    """A declaration with the comment before it; of a struct, an enum or a class with its body."""

    comment: str
    text: str
    body: str


def text_of(comment: str) -> str:
    """The words of a comment, its paragraphs apart, without the signs around them."""
    inside = re.sub(r"^/\*+<?( @file\n \*)?|\*/$", "", comment.strip())
    lines = [re.sub(r"^\s*\* ?", "", line).rstrip() for line in inside.strip().splitlines()]
    return "\n".join(lines).strip()


def declarations(source: str) -> Iterator[Declared]:
    """Every declaration of this level, in its order; bodies of functions are left out, those of types are not."""
    at, comment = 0, ""
    while at < len(source):
        if source[at].isspace():
            at += 1
        elif source.startswith("/*", at):
            end = source.index("*/", at) + 2
            comment = source[at:end] if source.startswith("/**", at) and source[at + 3] != "<" else ""
            at = end
        elif source[at] == "#":
            line = re.split(r"(?<!\\)\n", source[at:], maxsplit=1)[0]
            if comment and line.startswith("#define"):
                yield Declared(text_of(comment), line, "")
            comment, at = "", at + len(line)
        elif found := re.compile(r"(public|private|protected):").match(source, at):
            if found[1] != "public":
                return
            at, comment = found.end(), ""
        else:
            text, body, at = _declaration(source, at)
            yield Declared(text_of(comment) if comment else "", text, body)
            comment = ""


def _declaration(source: str, at: int) -> tuple[str, str, int]:
    """The declaration that begins here, its body, and where the next begins."""
    begin, depth = at, 0
    while source[at] not in ";{" or depth:
        if source.startswith("/*", at):
            at = source.index("*/", at) + 1
        depth += (source[at] == "(") - (source[at] == ")")
        at += 1
    text = source[begin:at]
    if source[at] == ";":
        return _plain(text), "", at + 1
    inside = at + 1
    at, depth = inside, 1
    while depth:
        if source.startswith("/*", at):
            at = source.index("*/", at) + 2
            continue
        if source[at] in "\"'" and not (source[at] == "'" and source[at - 1].isdigit()):
            quoted = re.compile(r"([\"'])(?:\\.|(?!\1).)*\1").match(source, at)
            at = quoted.end() if quoted else at + 1
            continue
        depth += (source[at] == "{") - (source[at] == "}")
        at += 1
    body = source[inside : at - 1]
    end = re.compile(r"\s*(\w+)?\s*;").match(source, at)
    if end and (text.lstrip().startswith(("typedef", "struct", "enum", "class")) or "class " in text):
        text += f" {end[1]}" if end[1] else ""
        at = end.end()
    return _plain(text), body, at


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def members(body: str) -> Iterator[tuple[str, str]]:
    """Each member of a struct or an enum, and its comment, which stands before or behind it."""
    before = ""
    found = re.compile(
        r"/\*\*(?P<behind><)?(?P<comment>.*?)\*/|/\*.*?\*/|(?P<member>[^/;,\s](?:[^/;,<]|<[^>]*>)*)[;,]?", re.DOTALL
    )
    pending: list[str] = []
    for match in found.finditer(body):
        if match["member"]:
            pending.append(_plain(match["member"]))
            if before:
                yield pending.pop(), before
                before = ""
            continue
        if match["comment"] is None:
            continue
        words = _plain(text_of(match[0]))
        if match["behind"]:
            for member in pending[:-1]:
                yield member, ""
            if pending:
                yield pending[-1], words
            pending = []
        else:
            for member in pending:
                yield member, ""
            pending, before = [], words
    for member in pending:
        yield member, ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(body: str) -> str:
    rows = [f"| `{_cell(member)}` | {_cell(comment)} |" for member, comment in members(body)]
    return "\n".join(["| member | is |", "|---|---|", *(row.replace("|  |", "| |") for row in rows)])


def _paragraphs(text: str) -> str:
    """A comment as Markdown: its indented lines are code already."""
    return re.sub(r"<(?=[\w.])", r"\\<", text)


def c_reference(header: str) -> str:
    """The part of the page for C: the header's sections, constants and types first."""
    header = header[header.index("#define SHMSERVE_ABI") - 200 :]
    header = header[header.index("/** Of this header") :].partition("#ifdef __cplusplus")[0]
    parts = re.split(r"/\* -+ (.*?) -+ \*/", header)
    page = [_types(parts[0])]
    for name, source in zip(parts[1::2], parts[2::2], strict=True):
        page.append(f"## {name}")
        for declared in declarations(source):
            function = re.search(r"\b(shmserve_\w+)\(", declared.text)
            assert function is not None, declared
            page.append(f"### {function[1]}\n\n```c\n{declared.text};\n```\n\n{_paragraphs(declared.comment)}")
    return "\n\n".join(page)


def _types(source: str) -> str:
    page = ["## Constants and types"]
    for declared in declarations(source):
        if declared.text.startswith("#define"):
            name, _, value = declared.text.removeprefix("#define ").partition(" ")
            page.append(f"### {name}\n\n`{value}`: {_paragraphs(declared.comment)}")
        elif declared.body:
            name = declared.text.split()[-1]
            page.append(f"### {name}\n\n{_paragraphs(declared.comment)}\n\n{_table(declared.body)}")
        else:
            page.append(f"### {declared.text.split()[-1]}\n\n`{declared.text}`: {_paragraphs(declared.comment)}")
    return "\n\n".join(page)


def _signature(text: str) -> str:
    """A function's declaration without what only the compiler needs."""
    text = re.sub(r"\) (const )?noexcept.*$", lambda found: f") {found[1] or ''}".rstrip(), text)
    return re.sub(r"^(inline|constexpr|explicit) ", "", re.sub(r" : \w+_?\(.*$", "", text))


def _functions(members: Iterator[Declared], own: str = "") -> Iterator[str]:
    """Functions, each with those of its name that follow it without a comment of their own."""
    groups: list[tuple[list[str], str]] = []
    last = ""
    for member in members:
        signature = _signature(member.text)
        is_own = re.match(rf"(template <.*> )?(explicit |constexpr )*~?{own}\(", member.text) if own else None
        if (
            not signature
            or is_own
            or re.match(r"using |friend ", signature)
            or "operator" in signature
            or "&&)" in signature
        ):
            continue
        name = re.sub(r".*?(\w+)\(.*", r"\1", signature)
        if member.comment or name != last:
            groups.append(([], member.comment))
        last = name
        groups[-1][0].append(f"{signature};")
    for signatures, comment in groups:
        code = "\n".join(signatures)
        yield f"```cpp\n{code}\n```" + (f"\n\n{_paragraphs(comment)}" if comment else "")


def _class(declared: Declared, name: str) -> str:
    public = declared.body.partition("public:")[2]
    page = [f"### {name}", _paragraphs(declared.comment), *_functions(declarations(public), name.partition("<")[0])]
    return "\n\n".join(part for part in page if part)


def cpp_reference(source: str) -> str:
    """One header of C++: its classes with their commented members, its types, its functions."""
    page: list[str] = []
    functions: list[Declared] = []
    inside = re.sub(r"namespace detail \{.*?\n\} // namespace detail\n", "", source, flags=re.DOTALL)
    inside = inside.partition("namespace shmserve {")[2].rpartition("} // namespace shmserve")[0]
    for declared in declarations(inside):
        kind = re.match(
            r"(?:template <[^>]*> )?(class (?:\[\[nodiscard\]\] )?|struct |enum class )(\w+(?:<.*>)?)", declared.text
        )
        if kind is None:
            functions.append(declared)
        elif declared.body and kind[1].startswith("class"):
            page.append(_class(declared, kind[2]))
        elif declared.body:
            table = _table(declared.body) if "(" not in declared.body else ""
            page.append("\n\n".join(part for part in (f"### {kind[2]}", _paragraphs(declared.comment), table) if part))
    return "\n\n".join([*_functions(iter(functions)), *page])


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION.strip(), c_reference((INCLUDE / "shmserve.h").read_text())]
    for name, about in CPP.items():
        parts.append(f"## {about}: {name}\n\n{cpp_reference((INCLUDE / name).read_text())}")
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is not current")
    if not parser.parse_args().check:
        PAGE.write_text(page())
        return 0
    if PAGE.exists() and PAGE.read_text() == page():
        return 0
    print("docs/reference/c-reference.md is not what the headers say: make man", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
