"""What a policy does with its observation never reaches another request, nor the client's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shmserve.client import ShmClient
from tests.daemon_process import Daemon
from tests.gate import Gate
from tests.trees import assert_same


@pytest.mark.parametrize("keep", ["whole", "row", "numpy", "in turn"])
def test_a_policy_may_keep_its_observations(start_daemon: Callable[..., Daemon], keep: str) -> None:
    parts: dict[str, Any] = {"whole": slice(None), "row": 1, "numpy": slice(2, None)}
    turn = ["whole", "none", "row", "none", "none", "numpy", "whole"]
    kept: list[tuple[int, Any]] = []
    with start_daemon("history").client() as client:
        for step in range(60):
            frame: Any = np.full((4, 50), step, np.int32) if step % 3 else np.full((6, 30), step, np.float32)
            how = turn[step % len(turn)] if keep == "in turn" else keep

            found = client.infer({"step": step, "frame": frame, "keep": how})

            if how in parts:
                kept = [*kept[-7:], (step, frame[parts[how]])]
            assert found["steps"] == [number for number, _ in kept]
            assert_same(found["frames"], [np.ascontiguousarray(part) for _, part in kept])


def test_a_policy_may_change_its_observation(start_daemon: Callable[..., Daemon]) -> None:
    with start_daemon("mutating").client() as client:
        for number in range(20):
            x = np.arange(100, dtype=np.float32) + number
            before = x.copy()

            found = client.infer({"x": x})

            assert_same(x, before)
            assert_same(found["x"], before * 2 + 1)
            assert found["more"] == (before * 2 + 1).sum()


def test_the_clients_array_may_change_once_it_was_sent(client: ShmClient, gate: Gate) -> None:
    held = client.submit(gate.observation)
    x = np.arange(1000)
    pending = client.submit({"do": "echo", "value": x})
    x[:] = -1
    gate.open()

    assert_same(pending.result(), np.arange(1000))
    held.result()
