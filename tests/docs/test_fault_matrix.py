"""docs/development/fault-matrix.md: every fault once, and each with a test that carries its mark."""

from __future__ import annotations

import re

import pytest

from tests.support.fault_marks import FAULTS_WITH_TESTS, is_whole_suite
from tests.support.folders import REPOSITORY

_ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (REPOSITORY / "docs" / "development" / "fault-matrix.md").read_text().splitlines()
    if re.match(r"\| T\d\d \|", line)
]


def test_every_fault_is_there_once_and_in_order() -> None:
    assert [row[0] for row in _ROWS] == [f"T{number:02}" for number in range(1, 89)]
    assert all(len(row) == 4 and all(row) for row in _ROWS)


@pytest.mark.parametrize("fault", [row[0] for row in _ROWS])
def test_a_test_carries_the_mark_of_the_fault(fault: str, request: pytest.FixtureRequest) -> None:
    if not is_whole_suite(request.config):
        pytest.skip("the marks are complete only where all tests are collected")

    assert request.config.stash[FAULTS_WITH_TESTS].get(fault)


def test_no_mark_names_a_fault_that_the_page_does_not_have(request: pytest.FixtureRequest) -> None:
    assert request.config.stash[FAULTS_WITH_TESTS].keys() <= {row[0] for row in _ROWS}
