"""README.md: its snippets do what they say; the Chinese pages are the same as the English ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.support.folders import REPOSITORY
from tests.support.followed_page import Snippet, empty_folder, run, snippets

ENGLISH = REPOSITORY / "README.md"
#: Pages in both languages.
TRANSLATED = {
    "README": (ENGLISH, REPOSITORY / "README_CN.md"),
    "first service": tuple(REPOSITORY / f"docs/tutorials/first-service{language}.md" for language in ("", ".zh")),
}
#: What a fresh machine is told to run first; the rest is run in the tests' own environment.
_INSTALLS = ("make demo", "python3 -m venv")


def followed() -> list[Snippet]:
    return [snippet for snippet in snippets(ENGLISH) if not snippet.text.startswith(_INSTALLS)]


def test_the_policy_the_robot_and_the_update_on_the_page_work() -> None:
    # One shell for all of it, as the reader has: the daemon that one snippet starts, another one ends.
    script = "".join(snippet.text for snippet in followed() if snippet.language == "sh")

    with empty_folder() as folder:
        output = run(script + "wait\n", folder)
        log = (folder / "shmserved.log").read_text()

    actions = re.findall(r"^\[(0\.\d+) .*\] median round trip \d+ us$", output, re.MULTILINE)
    assert actions == ["0.5", "0.25"], output
    assert "serving version" in output
    assert "serving my_policy version" in log and "WARNING" not in log
    # What the daemon logs does not stand between the lines of the commands.
    assert "shmserved: state" not in output


@pytest.mark.long
def test_the_robot_on_the_page_passes_the_strictest_type_check() -> None:
    [robot] = [snippet.text for snippet in followed() if "cat > robot.py" in snippet.text]
    program = robot.partition("<<'PY'\n")[2].partition("PY\n")[0]

    with empty_folder() as folder:
        (folder / "robot.py").write_text(program)
        options = ["--strict", "--follow-imports=silent", "--cache-dir", str(folder / "cache")]
        done = subprocess.run(
            [sys.executable, "-m", "mypy", *options, str(folder / "robot.py")],
            cwd=folder,
            env={**os.environ, "MYPYPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == 0, done.stdout + done.stderr


def figures(text: str) -> list[str]:
    """The numbers of the table that is replaced after each measurement, row by row; a way's name is no number."""
    begin, end = "<!-- figures -->", "<!-- /figures -->"
    rows = [line for line in text.partition(begin)[2].partition(end)[0].splitlines() if line.startswith("|")]
    return [" ".join(re.findall(r"[\d,]+", row.split("|", 2)[2])) for row in rows[2:]]


def structure(text: str) -> dict[str, list[str]]:
    """What two pages in different languages have in common."""
    return {
        "headings": re.findall(r"^#+(?= )", text, re.MULTILINE),
        "code": re.findall(r"^```\w+\n.*?^```$", text, re.MULTILINE | re.DOTALL),
        "columns of each table row": [str(line.count("|")) for line in text.splitlines() if line.startswith("|")],
        "figures": figures(text),
        "points": re.findall(r"^- \*\*", text, re.MULTILINE),
        "markers": re.findall(r"<!-- .*? -->", text),
        # English and Chinese name each other; an anchor is in the language of its page.
        "links": sorted({_in_english(link) for link in re.findall(r"\]\(([^)\s]+)\)", text)}),
    }


def _in_english(link: str) -> str:
    """The link that the English page has where the Chinese one has this."""
    file, _, anchor = link.partition("#")
    english = re.sub(r"_CN\.md$|\.zh\.md$", ".md", file)
    return english if english.endswith(("README.md", "first-service.md")) else f"{file}#{anchor}"


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_chinese_page_has_the_same_structure_code_and_figures(name: str) -> None:
    english, chinese = (structure(page.read_text("utf-8")) for page in TRANSLATED[name])

    for what, found in english.items():
        assert chinese[what] == found, what
    assert len(english["code"]) >= 7
    assert bool(english["figures"]) == (name == "README")
