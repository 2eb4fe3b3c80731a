"""The page of planted bugs has those of tests/support/planted_bugs.py, and each still has its place and its test."""

from __future__ import annotations

from tests.support.folders import REPOSITORY
from tests.support.mutants import table
from tests.support.planted_bugs import MUTANTS


def test_the_page_has_the_table() -> None:
    page = (REPOSITORY / "docs" / "development" / "gpu-mutants.md").read_text()
    assert page.endswith(table() + "\n"), "write it again: python -m tests.support.mutants --table"


def test_each_planted_bug_has_one_place_and_a_test() -> None:
    for mutant in MUTANTS:
        text = (REPOSITORY / "daemon" / "engine" / "device" / mutant.file).read_text()
        assert text.count(mutant.old) == 1, mutant.name
        assert f"def {mutant.test}(" in (REPOSITORY / mutant.tests).read_text(), mutant.name
