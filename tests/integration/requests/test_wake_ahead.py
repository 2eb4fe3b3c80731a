"""An idle engine is awake for the request of a client that keeps a rhythm."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from tests.support.daemon_process import Daemon

pytestmark = pytest.mark.sealed_too

_PERIOD_S = 0.02


def ask_in_rhythm(daemon: Daemon, enough: Callable[[dict[str, float]], bool], most: int = 1500) -> dict[str, float]:
    """Ask once in every period until there is enough; return what the engine has counted."""
    with daemon.client() as client:
        due_s = time.monotonic()
        for number in range(most):
            due_s += _PERIOD_S
            time.sleep(max(0.0, due_s - time.monotonic()))
            assert np.array_equal(client.infer({"do": "echo", "value": np.full(3, number)}), np.full(3, number))
            if number % 20 == 19 and enough(counted(daemon)):
                break
    return counted(daemon)


def counted(daemon: Daemon) -> dict[str, float]:
    found: dict[str, float] = daemon.status()["engine"]["wake_ahead"]
    return found


def test_an_engine_meets_the_requests_of_a_robot(obedient: Daemon) -> None:
    before = counted(obedient)
    after = ask_in_rhythm(obedient, lambda now: now["met"] > before["met"] + 3)

    assert after["met"] > before["met"] + 3
    assert after["awake_s"] > before["awake_s"]


def test_an_engine_that_may_not_does_not(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("obedient", config='wake_ahead = "off"')

    assert ask_in_rhythm(daemon, lambda now: True) == {"met": 0, "missed": 0, "awake_s": 0}
