"""How much the tests of updates do: a little in each run, all of it in `make test-all`, which also prints figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

#: Alternating updates under load.
UPDATES = int(os.environ.get("SHMSERVE_TEST_UPDATES", "12"))
THOROUGH = UPDATES >= 1000


def some_of(cases: Sequence[T], every: int) -> Sequence[T]:
    """Return all cases when there is time, else one of `every`."""
    return cases if THOROUGH else cases[::every]
