"""docs/how-to/remote.md beside the code: the keys of a link, the counts of the status, and every word of a message."""

from __future__ import annotations

import dataclasses
import re

import pytest

from shmserve.daemon.api.link_status import REMOTE_COUNTERS
from shmserve.daemon.packages import remote_link
from shmserve.layout import Words
from shmserve.message import REPLY_HEAD, REQUEST_HEAD
from tests.support.folders import REPOSITORY

PAGE = (REPOSITORY / "docs/how-to/remote.md").read_text("utf-8")


def rows(header: str) -> list[list[str]]:
    """Return the cells of the table that begins with this header."""
    lines = PAGE.partition(header)[2].splitlines()[2:]
    table = lines[: next(number for number, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_every_key_of_a_link_is_in_the_table_with_its_default() -> None:
    found = {cells[0].strip("`"): cells[1] for cells in rows("| `[remote]` | default | |")}

    assert found.keys() == remote_link._KEYS.keys()
    for field in dataclasses.fields(remote_link.RemoteLink):
        default = field.default
        shown = "required" if default is dataclasses.MISSING else "none" if default is None else f"{default:g}"
        assert found[field.name] == shown


def test_every_count_of_the_status_is_in_the_table() -> None:
    counted = [cells[-1].strip("`") for cells in rows("| what happens | the robot gets | counted as |")]

    assert set(counted) - {"the same"} == set(REMOTE_COUNTERS)


@pytest.mark.parametrize(
    ("header", "words"),
    [("| at | word of a request | |", REQUEST_HEAD), ("| at | word of a reply | |", REPLY_HEAD)],
    ids=["request", "reply"],
)
def test_every_word_of_a_message_is_in_the_table_at_its_place(header: str, words: Words) -> None:
    found: dict[str, int] = {}
    for offsets, names, _ in rows(header):
        found |= dict(zip(re.findall(r"\w+", names), map(int, offsets.split(", ")), strict=True))

    assert found == {name: words.offset(name) for name in words.names}
