"""The faults of docs/development/fault-matrix.md, and the tests that are marked with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.folders import REPOSITORY

#: The tests of each fault among all that were collected, also those that this run leaves out.
FAULTS_WITH_TESTS = pytest.StashKey[dict[str, list[str]]]()


def note_marks(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Remember which tests are marked with which fault."""
    found = defaultdict[str, list[str]](list)
    for item in items:
        for mark in item.iter_markers("fault"):
            for fault in mark.args:
                found[fault].append(item.nodeid)
    config.stash[FAULTS_WITH_TESTS] = dict(found)


def is_whole_suite(config: pytest.Config) -> bool:
    """Return whether the run was asked for all of tests/."""
    return REPOSITORY / "tests" in [(config.rootpath / Path(argument)).resolve() for argument in config.args]
