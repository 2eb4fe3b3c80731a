"""Hooks of mkdocs for the site (`make docs`): what the pages link to beside docs/, and the parts made of the code.

The pages are plain Markdown of the repository. A link from them to a file outside docs/ becomes a page of the site in the folder
source/: other Markdown files as they are, sources in a block of code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import commands
import varlink_reference

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: Where the files of the repository stand in the site.
SOURCE = "source"
#: Pages whose line `<!-- made by make docs -->` is replaced.
MARK = "<!-- made by make docs -->"
GENERATED: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands.markdown,
    "reference/varlink.md": varlink_reference.markdown,
}
_LINK = re.compile(r"(\[[\w./-]+\.md)?(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
_FENCED = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".c": "c", ".h": "c", ".hpp": "cpp", ".cpp": "cpp", ".toml": "toml", ".yml": "yaml"}


def file_of(uri: str) -> Path:
    """Return the repository's file behind a page of the site."""
    if not uri.startswith(f"{SOURCE}/"):
        return ROOT / "docs" / uri
    file = ROOT / uri.removeprefix(f"{SOURCE}/")
    return file if file.exists() else file.with_suffix("")


def uri_of(file: Path) -> str | None:
    """Return the site's page of a file or a folder of the repository; None if there is none."""
    if file.is_dir():
        file /= "README.md"
    if not file.is_file() or not file.is_relative_to(ROOT):
        return None
    if file.is_relative_to(ROOT / "docs"):
        return file.relative_to(ROOT / "docs").as_posix()
    path = f"{SOURCE}/{file.relative_to(ROOT).as_posix()}"
    return path if file.suffix == ".md" else f"{path}.md"


def with_links(markdown: str, uri: str, seen: set[Path]) -> str:
    """Return a page with its links as the site needs them; add the files that they lead to, to `seen`.

    A link whose text is the file's name, as it is in the repository, is shown with the title of the page.
    """
    folder = file_of(uri).parent

    def link(found: re.Match[str]) -> str:
        text, opening, target, anchor, closing = found.groups(default="")
        place = uri_of(Path(os.path.normpath(folder / target)))
        if place is None:
            return found[0]
        if place.startswith(f"{SOURCE}/"):
            seen.add(file_of(place))
        text = f"[{_title(file_of(place))}" if text else ""
        return f"{text}{opening}{os.path.relpath(place, os.path.dirname(uri))}{anchor}{closing}"

    parts, at = [], 0
    for fence in _FENCED.finditer(markdown):
        parts += [_LINK.sub(link, markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, _LINK.sub(link, markdown[at:])])


@cache
def _title(page: Path) -> str:
    found = re.search(r"^# (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return found[1] if found else page.name


def _content(file: Path) -> str:
    """Return a file of the repository as a page; the site's search covers the pages of docs/ alone."""
    head = "---\nsearch:\n  exclude: true\n---\n"
    text = file.read_text("utf-8")
    if file.suffix == ".md":
        return head + text
    language = _LANGUAGES.get(file.suffix, "text")
    return f"{head}# {file.relative_to(ROOT)}\n\n````{language}\n{text}\n````\n"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of files outside docs/ that a page links to, and so on."""
    from mkdocs.structure.files import File

    waiting: set[Path] = set()
    done: set[Path] = set()
    for page in files.documentation_pages():
        with_links(page.content_string, page.src_uri, waiting)
    while waiting - done:
        file = (waiting - done).pop()
        done.add(file)
        uri = uri_of(file)
        assert uri is not None
        content = _content(file)
        if file.suffix == ".md":
            with_links(content, uri, waiting)
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make the page of its Markdown in the repository."""
    uri = page.file.src_uri
    if (generate := GENERATED.get(uri)) is not None:
        assert MARK in markdown, uri
        markdown = markdown.replace(MARK, generate())
    if uri.startswith(f"{SOURCE}/") and not uri.endswith((".md.md",)) and file_of(uri).suffix != ".md":
        return markdown
    return with_links(markdown, uri, set())


def on_post_page(output: str, **_: Any) -> str:
    """Refuse a page that would fetch something from another host."""
    for found in re.finditer(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^>]*>", output):
        raise ValueError(f"the page fetches from another host: {found[0]}")
    return output
