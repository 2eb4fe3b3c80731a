"""docs/how-to/client.md: its programs are run as a reader would."""

from __future__ import annotations

import re

import pytest

from tests.support.folders import REPOSITORY
from tests.support.followed_page import empty_folder, follow, snippets

pytestmark = pytest.mark.long

PAGE = REPOSITORY / "docs/how-to/client.md"
SNIPPETS = snippets(PAGE)

#: What each program prints; a program not named here prints nothing.
PRINTED = {
    "ask": r"\(16, 6\) True\nTrue True",
    "units": (
        r"10 differences, the first: observation\.state\.units\[0\] \(shoulder_pan\): deg -> rad\n"
        r"\[ 0\.1 +-0\.5 +0\.8 +0\. +0\.2 +30\. *\]"
    ),
    "deadlines": (
        r"no reply from 'arm' to request \d+ within 0\.\d+ s \(a late one is discarded\)\n"
        r"the next has its own answer: 2\nthrown away: 1"
    ),
    "fresh": (
        r"request 1 to 'arm': the observation was too old when its turn came; the model did not run\n"
        r"request 3 to 'arm' was replaced by a newer one before it ran\nnewest: 2"
    ),
    "steady": r"action for frame 0\naction for frame 1\naction for frame 2",
    "pipelined": r"False True\n\[0, 1, 2\] True\nrequest 4 to 'arm' was cancelled before it ran",
    "loans": r"\[2\. 2\.\]\nFalse\nan array of the reply outlived its block.*",
    "event_loop": r"free meanwhile: True \(16, 6\)",
    "threads": r"\[0\.0, 1\.0, 2\.0, 3\.0\]\nchild: 7\nparent: 3",
    # On a busy machine a beat may be late, which the page's program says.
    "restarts": r"((RequestTimeout|SlotsExhausted) .*\n)*done 25",
    "chunks": r"(nothing to hold yet: .*\n)*steps with an action of their own: True \(6,\)",
}


@pytest.fixture(scope="module")
def output() -> str:
    with empty_folder() as folder:
        for snippet in SNIPPETS:
            if snippet.file is not None:
                (folder / snippet.file).parent.mkdir(exist_ok=True)
                (folder / snippet.file).write_text(snippet.text)
        (output,) = follow(SNIPPETS, folder)
    return output


def test_every_program_prints_what_the_page_leads_to_expect(output: str) -> None:
    found = dict(re.findall(r"^== (\w+)\n(.*?)(?=^== |\Z)", output, re.MULTILINE | re.DOTALL))

    for name, pattern in PRINTED.items():
        # A line of the daemon's log may come between two words of a program, which prints them one by one.
        said = re.sub(r"\d\d:\d\d:\d\d (?:INFO|WARNING|ERROR) .*\n", "", found[name]).rstrip("\n")
        assert re.fullmatch(pattern, said), f"{name}:\n{found[name]}"


def test_every_block_of_the_page_is_run() -> None:
    files = {snippet.file for snippet in SNIPPETS if snippet.language == "python"}

    assert files == {f"{name}.py" for name in PRINTED} | {"arm/policy.py"}
    assert [snippet.language for snippet in SNIPPETS if snippet.file is None] == ["sh"]
    assert PAGE.read_text().count("```") == 2 * len(SNIPPETS)
