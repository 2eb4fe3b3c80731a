"""Every page: its links lead somewhere, and the commands, options, programs and files that it names exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from shmserve.client.cli.main import main as shmserve_admin
from shmserve.daemon.main import main as shmserved
from tests.support.folders import REPOSITORY

#: What is not of the repository, or is made anew by a program.
_ELSEWHERE = {".venv", ".venv-bench", "venv", "build", "dist", "node_modules"}
PAGES = sorted(
    page
    for place in REPOSITORY.iterdir()
    if not place.name.startswith(".") and place.name not in _ELSEWHERE
    for page in ([place] if place.suffix == ".md" else place.rglob("*.md"))
    if not page.is_symlink() and not any(part.startswith(".") or part in _ELSEWHERE for part in page.parts)
)
_LINK = re.compile(r"(?<!`)!?\[[^\]`]*(?:`[^`]*`[^\]`]*)*\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
_TARGETS = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
_FOLDERS = "shmserve|daemon|client|tests|bench|systemd|examples|docs"

each_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(REPOSITORY)) for page in PAGES])


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(page: Path) -> str:
    """Everything on the page that is set as code; a line of it is a line here."""
    text = page.read_text("utf-8")
    blocks = [found[0] for found in _FENCED.finditer(text)]
    prose = _FENCED.sub("", text)
    inline = [span.replace("\n", " ") for span in _INLINE.findall(prose)]
    return "\n".join([*blocks, *inline, *_INDENTED.findall(prose)]).replace("\\\n", " ")


@each_page
def test_every_link_of_the_page_leads_to_a_file_or_a_heading(page: Path) -> None:
    dead = []
    for link in _LINK.findall(_FENCED.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)

    assert dead == []


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """The words after `program` wherever the page shows it called, without what the shell makes of them."""
    for rest in re.findall(rf"(?<![\w/.-]){program}((?: [^\n`|#&;<>()]+)?)", code(page)):
        try:
            yield shlex.split(rest)
        except ValueError:  # a quote of the program around it
            yield rest.split()


def options(*commands: click.Command) -> dict[str, click.Option]:
    """Every spelling of every option."""
    found = [option for command in commands for option in command.params if isinstance(option, click.Option)]
    return {
        **{spelling: option for option in found for spelling in option.opts},
        **dict.fromkeys(("--help", "-h"), click.Option(["--help"], is_flag=True)),
    }


def unknown(words: list[str], program: click.Command) -> list[str]:
    """The command or the options among the words that the program does not have."""
    wrong: list[str] = []
    command: click.Command | None = None if isinstance(program, click.Group) else program
    known = options(program)
    remaining = iter(words)
    for word in remaining:
        word = word.strip("[],.:")
        if word.startswith("-") and len(word) > 1:
            name = word.partition("=")[0]
            if name not in known:
                wrong.append(word)
            elif not known[name].is_flag and "=" not in word:
                next(remaining, None)
        elif command is None and isinstance(program, click.Group) and re.fullmatch(r"[a-z][a-z-]+", word):
            command = program.commands.get(word)
            if command is None:
                return [*wrong, word]
            known = options(program, command)
    return wrong


@each_page
@pytest.mark.parametrize(
    ("program", "command"), [("shmserve-admin", shmserve_admin), ("shmserved", shmserved)], ids=["admin", "daemon"]
)
def test_every_command_and_option_on_the_page_exists(page: Path, program: str, command: click.Command) -> None:
    found = {f"{program} {' '.join(words)}": unknown(words, command) for words in commands(page, program)}

    assert {call: wrong for call, wrong in found.items() if wrong} == {}


@each_page
def test_every_make_target_module_and_file_on_the_page_exists(page: Path) -> None:
    shown = code(page)
    targets = {target for target in re.findall(r"^(?:\$ )?make ([a-z][\w-]*)", shown, re.MULTILINE)} - _TARGETS
    modules = {
        module
        for module in re.findall(r"python3? -m ((?:bench|examples|tests)[\w.]*)", shown)
        if importlib.util.find_spec(module) is None
    }
    files = {
        file
        for file in re.findall(rf"(?<![\w/.<-])(?:(?:{_FOLDERS})/)[\w./-]*\.(?:py|md|toml|svg|conf|service)\b", shown)
        if not (REPOSITORY / file).exists() and not (page.parent / file).exists()
    }

    assert (targets, modules, files) == (set(), set(), set())


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert unknown(["--name", "arm", "update-modle", "x"], shmserve_admin) == ["update-modle"]
    assert unknown(["update-model", "--inplace", "x"], shmserve_admin) == ["--inplace"]
    assert unknown(["--model-dir", "x"], shmserved) == ["--model-dir"]
    assert unknown(["[--name", "NAME]", "--json", "COMMAND"], shmserve_admin) == []


def test_every_target_that_the_makefile_names_is_one() -> None:
    """Without a rule, make answers a name in .PHONY with "nothing to be done"; without a text, make help omits it."""
    makefile = (REPOSITORY / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY:(.*)", makefile, re.MULTILINE)
    rules = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))

    assert {name for line in phony for name in line.split()} - rules == set()
    parts = {"run-tests", "run-sealed-tests", "run-pure-tests", "run-on-gpu"}
    assert rules - set(re.findall(r"^([\w-]+):.*?## \w", makefile, re.MULTILINE)) == parts
