"""Parameters of which `make test` takes one in several."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
from _pytest.mark import ParameterSet


def one_of(every: int, cases: Sequence[object]) -> list[ParameterSet]:
    """Return all cases; `make test` takes one of `every`, `make test-all` the others, too."""
    return [pytest.param(case, marks=[pytest.mark.long] if place % every else []) for place, case in enumerate(cases)]


def only(short: Collection[object], cases: Sequence[object]) -> list[ParameterSet]:
    """Return all cases; `make test` takes those in `short`, `make test-all` the others, too."""
    assert set(short) <= set(cases)
    return [pytest.param(case, marks=[] if case in short else [pytest.mark.long]) for case in cases]
