"""docs/faults.md: every fault once, and every test that it names exists."""

from __future__ import annotations

import re

import pytest

from tests.support.folders import REPOSITORY

_TESTS = REPOSITORY / "tests"
_ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (_TESTS.parent / "docs" / "faults.md").read_text().splitlines()
    if re.match(r"\| T\d\d \|", line)
]


def test_every_fault_is_there_once_and_in_order() -> None:
    assert [row[0] for row in _ROWS] == [f"T{number:02}" for number in range(1, 89)]
    assert all(len(row) == 5 and all(row) for row in _ROWS)


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row[0])
def test_it_names_tests_that_exist(row: list[str]) -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row[4])

    for file, test in named:
        (path,) = _TESTS.rglob(file)
        assert re.search(rf"^def {test}\(", path.read_text(), re.MULTILINE), f"{file} has no {test}"
    assert named
