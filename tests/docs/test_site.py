"""What `make docs` would refuse, without building: the pages of the site, its reference of the code, and nothing of other hosts."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType

import click
import pytest

import shmserve.client
from shmserve import errors
from shmserve.errors import ModelPackageError, ShmServeError
from shmserve.protocol import WIRE_VERSION
from tests.docs.test_documents import PAGES
from tests.support.folders import REPOSITORY

DOCS = REPOSITORY / "docs"
REFERENCE = DOCS / "reference"
_CONFIGURATION = (REPOSITORY / "mkdocs.yml").read_text("utf-8")
_FENCED = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def site_pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """man/site_pages.py, the hooks of mkdocs."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "man"))
    return importlib.import_module("site_pages")


def documented() -> list[str]:
    """The names whose docstrings the reference shows."""
    return [
        name for page in REFERENCE.glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]


def test_the_navigation_names_each_page_once(site_pages: ModuleType) -> None:
    named = re.findall(r": (\S+\.md)$", _CONFIGURATION.partition("\nnav:\n")[2], re.MULTILINE)
    own = [name for name in named if not name.startswith(f"{site_pages.SOURCE}/")]

    assert sorted(own) == sorted(
        page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if not page.is_symlink()
    )
    for name in set(named) - set(own):
        assert site_pages.file_of(name).is_file(), name


def test_the_list_of_pages_names_each_page() -> None:
    home = (DOCS / "README.md").read_text("utf-8")
    listed = {(DOCS / link).resolve() for link in re.findall(r"\]\(([^)#]+\.md)\)", home)}

    assert {page for page in DOCS.rglob("*.md") if page.name != "README.md" and not page.is_symlink()} <= listed


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(REPOSITORY)) for page in PAGES])
def test_the_page_means_the_same_to_both_renderers(page: Path) -> None:
    """Python-Markdown, which the site uses, sees a list only behind an empty line, and draws no diagrams."""
    text = page.read_text("utf-8")
    prose = _FENCED.sub("\n", text)
    lists = re.findall(r"^(?![-*|#> ]|\d+\. )(.+)\n(?:[-*]|\d+\.) ", prose, re.MULTILINE)
    foreign = re.findall(r"!\[[^\]]*\]\((?:https?:)?//[^)]*\)|<(?:img|script|iframe)\b[^>]*", prose)

    assert (lists, foreign) == ([], [])
    assert "```mermaid" not in text


def test_every_public_name_of_the_client_is_in_the_reference() -> None:
    shown = {name.rpartition(".")[2] for name in documented()}
    pages = (REFERENCE / "errors.md").read_text()

    missing = {name for name in shmserve.client.__all__ if name not in shown and f"| `{name}` |" not in pages}
    assert missing == {"ShmServeError"}  # the page's first sentence
    for name in documented():
        module, _, member = name.rpartition(".")
        found = (
            importlib.import_module(name)
            if name == "shmserve.errors"
            else getattr(importlib.import_module(module), member)
        )
        assert inspect.getdoc(found), name


def test_the_table_of_errors_is_the_tree() -> None:
    table = (REFERENCE / "errors.md").read_text().partition("\nThe facts of an error")[0]
    shown = {
        name: set(re.findall(r"\w+", also)) for name, also in re.findall(r"^\| `(\w+)` \|(.*?)\|", table, re.MULTILINE)
    }

    types = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, ShmServeError)]
    assert shown == {
        found.__name__: {base.__name__ for base in found.__bases__} - {"ShmServeError"}
        for found in types
        if found not in (ShmServeError, ModelPackageError)
    }


def test_the_made_parts_have_every_command_and_every_method(site_pages: ModuleType) -> None:
    made = {uri: make() for uri, make in site_pages.GENERATED.items()}
    for uri in made:
        assert (DOCS / uri).read_text().count(site_pages.MARK) == 1

    programs = importlib.import_module("commands").PROGRAMS
    for name, command in programs.items():
        assert f"## {name}\n" in made["reference/commands.md"]
        if isinstance(command, click.Group):
            for inner in command.commands:
                assert f"### {name} {inner}\n" in made["reference/commands.md"]
    declared = "".join(importlib.import_module("varlink_reference").DESCRIPTIONS)
    for kind, name in re.findall(r"^(type|method|error) (\w+)", declared, re.MULTILINE):
        assert re.search(rf"^{kind} {name}\b", made["reference/varlink.md"], re.MULTILINE), name


def test_links_that_leave_the_documents_lead_to_copies_in_the_site(site_pages: ModuleType) -> None:
    seen: set[Path] = set()
    page = "[a](../../shmserve/errors.py) [b](client.md#errors) [c](../../examples/) [d](nothing.md)\n```\n[e](../../setup.py)\n```\n"

    assert site_pages.with_links(page, "how-to/updating.md", seen) == (
        "[a](../source/shmserve/errors.py.md) [b](client.md#errors) [c](../source/examples/README.md) [d](nothing.md)\n"
        "```\n[e](../../setup.py)\n```\n"
    )
    assert seen == {REPOSITORY / "shmserve/errors.py", REPOSITORY / "examples/README.md"}
    assert site_pages.with_links("[g](docs/README.md)", "source/CONTRIBUTING.md", set()) == "[g](../README.md)"
    # What is a file's name in the repository is the page's title in the site.
    named = site_pages.with_links("[glossary.md](../reference/glossary.md)", "how-to/client.md", set())
    assert named == "[Glossary](../reference/glossary.md)"


def test_a_page_that_fetches_from_another_host_is_refused(site_pages: ModuleType) -> None:
    with pytest.raises(ValueError, match="fetches from another host"):
        site_pages.on_post_page('<p><script src="https://example.com/x.js"></script>')
    plain = '<a href="https://example.com/">x</a><img src="../images/overview.svg">'

    assert site_pages.on_post_page(plain) == plain


def test_the_compatibility_page_states_the_requirements() -> None:
    page = (REFERENCE / "compatibility.md").read_text()
    project = (REPOSITORY / "pyproject.toml").read_text()
    stated = dict(re.findall(r"^\| (\w+)[^|]*\| ([\d.]+) or newer \|", page, re.MULTILINE))

    required = {
        "Python": re.findall(r'requires-python = ">=([\d.]+)"', project),
        "numpy": re.findall(r'^dependencies = \["numpy>=([\d.]+)"', project, re.MULTILINE),
        "PyTorch": re.findall(r'^daemon = \["torch>=([\d.]+)"', project, re.MULTILINE),
    }
    assert {name: [version] for name, version in stated.items()} == required
    assert f"**wire version {WIRE_VERSION}**" in page


@pytest.mark.long
def test_the_site_is_built(tmp_path: Path) -> None:
    mkdocs = REPOSITORY / ".venv-docs/bin/mkdocs"
    if not mkdocs.exists():
        pytest.skip("mkdocs is not installed: make docs")
    environment = {**os.environ, "SHMSERVE_PURE": "1", "NO_MKDOCS_2_WARNING": "1"}

    subprocess.run([mkdocs, "build", "--strict", "--site-dir", tmp_path], cwd=REPOSITORY, env=environment, check=True)

    search = (tmp_path / "search/search_index.json").read_text("utf-8")
    for word in ("ShmClient.infer", "shmserve-admin wait-ready", "AlreadyAttached", "\\u56de\\u6eda"):
        assert word in search, word
