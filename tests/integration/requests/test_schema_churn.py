"""Thousands of different structures through one client: each answered exactly, and neither side keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.daemon_process import Daemon
from tests.support.same_trees import assert_same

pytestmark = pytest.mark.sealed_too

#: Requests after which everything that is kept once is there.
_WARM = 400
#: Requests that are measured. A schema that was kept for each of them takes 12 MiB and more on either side.
_COUNT = 3000
_MOST_KIB = 6 << 10


def resident_kib(pid: int | str) -> int:
    """The process's own memory in use, without what it shares."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError(f"no RssAnon of {pid}")


def _texts(number: int) -> Any:
    text = f"instruction number {number}: " + "move the red cube " * (number % 12)
    return {"instruction": text, "state": np.arange(7, dtype=np.float32), f"key {number % 3}": number}


def _shapes(number: int) -> Any:
    return {"cloud": np.full((number % 3407, 3), number, np.float32), "number": number}


def _keys(number: int) -> Any:
    return {f"camera {number}": {f"frame {number}": np.full(5, number), "deep": [number] * (number % 9)}}


def _kinds(number: int) -> Any:
    # The digits of the number say what each of six entries is.
    values: list[Any] = [number, float(number), str(number), None, np.int16(number), np.full(number % 4, number)]
    return [values[number // 6**digit % 6] for digit in range(6)]


@pytest.mark.parametrize(
    "made",
    [pytest.param(made, id=made.__name__[1:]) for made in (_shapes, _keys)]
    + [pytest.param(made, id=made.__name__[1:], marks=pytest.mark.long) for made in (_texts, _kinds)],
)
def test_structures_that_change_with_every_request_are_exact_and_cost_no_memory(
    echo: Daemon, made: Callable[[int], Any]
) -> None:
    with echo.client() as client:
        engine = echo.engine_pid
        for number in range(_WARM):
            assert_same(client.infer(made(number)), made(number))
        before = resident_kib("self"), resident_kib(engine)
        for number in range(_WARM, _WARM + _COUNT):
            assert_same(client.infer(made(number)), made(number))
        after = resident_kib("self"), resident_kib(engine)

    assert after[0] - before[0] < _MOST_KIB, f"this client grew: {before} -> {after} KiB"
    assert after[1] - before[1] < _MOST_KIB, f"the engine grew: {before} -> {after} KiB"
