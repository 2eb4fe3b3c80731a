"""What a policy does with its observation never reaches another request, nor the client's memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.client import ShmClient
from tests.support.daemon_process import POLICIES, Daemon
from tests.support.gate import Gate
from tests.support.same_trees import assert_same

pytestmark = pytest.mark.sealed_too


@pytest.fixture(scope="module")
def history() -> Iterator[Daemon]:
    with Daemon("history") as daemon:
        yield daemon


@pytest.mark.parametrize("keep", ["whole", "row", "numpy", "in turn"])
def test_a_policy_may_keep_its_observations(history: Daemon, keep: str) -> None:
    parts: dict[str, Any] = {"whole": slice(None), "row": 1, "numpy": slice(2, None)}
    turn = ["whole", "none", "row", "none", "none", "numpy", "whole"]
    kept: list[tuple[int, Any]] = []
    with history.client() as client:
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

            reply = client.request({"x": x})
            found = reply.action

            assert_same(x, before)
            assert_same(found["x"], before * 2 + 1)
            assert found["more"] == (before * 2 + 1).sum()


def test_a_policy_that_works_on_numpy_gets_its_arrays(start_daemon: Callable[..., Daemon]) -> None:
    with start_daemon("numpy_arrays").client() as client:
        image, half = np.zeros((2, 2), np.uint8), torch.ones(2).bfloat16()
        found = client.infer(
            {"image": image, "zero": np.array(3.0), "half": half, "text": "lift", "scalar": np.int16(1)}
        )
        assert found == {
            "image": ["ndarray", "uint8"],
            "zero": ["ndarray", "float64"],
            "half": ["ndarray", "float32"],
            "text": ["str", ""],
            "scalar": ["int16", "int16"],
        }

        kept: list[tuple[int, Any]] = []
        turn = ["whole", "none", "part", "none", "none", "other dtype", "whole"]
        for step in range(60):
            frame: Any = np.full((4, 50), step, np.int32) if step % 3 else np.full((6, 30), step, np.float32)
            how = turn[step % len(turn)]

            answer = client.infer({"step": step, "frame": frame, "keep": how})

            flat = (frame + frame.dtype.type(1)).reshape(-1)
            parts = {"whole": flat, "part": flat[7:], "other dtype": flat.view(np.uint8)}
            if how in parts:
                kept = [*kept[-7:], (step, parts[how])]
            assert answer["steps"] == [number for number, _ in kept]
            assert_same(answer["frames"], [np.ascontiguousarray(part) for _, part in kept])


def test_a_policy_that_modifies_an_observation_read_in_place_does_no_harm(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    package = tmp_path / "changing"
    shutil.copytree(POLICIES / "mutating", package)
    (package / "model.toml").write_text("[model]\nread_in_place = true\n")
    daemon = start_daemon(package, arguments=("--transport", "named"))
    with daemon.client() as client:
        for number in range(20):
            x = np.arange(100, dtype=np.float32) + number
            before = x.copy()

            reply = client.request({"x": x})
            found = reply.action

            # With memory of its own a device reads nothing in place.
            on_host = "SHMSERVE_TEST_DEVICE" not in os.environ
            assert reply.in_place == on_host
            assert_same(x, before)
            assert_same(found["x"], before * 2 + 1)
    assert "not writable" not in daemon.log


def test_the_clients_array_may_change_once_it_was_sent(client: ShmClient, gate: Gate) -> None:
    held = client.submit(gate.observation)
    x = np.arange(1000)
    pending = client.submit({"do": "echo", "value": x})
    x[:] = -1
    gate.open()

    assert_same(pending.result(), np.arange(1000))
    held.result()
