"""A policy that takes several observations at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shmserve.client import EngineLost, InferenceFailed
from shmserve.client.pending import Pending
from shmserve.client.request_options import RequestOptions
from shmserve.protocol import Kind
from tests.support.daemon_process import Daemon
from tests.support.gate import Gate
from tests.support.same_trees import assert_same

pytestmark = pytest.mark.sealed_too


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("batched") as daemon:
        yield daemon


def test_waiting_requests_run_as_one_batch_and_each_gets_its_row(daemon: Daemon, gate: Gate) -> None:
    before = daemon.status()["requests"]
    with daemon.client(slots=8) as one, daemon.client(slots=8) as other:
        held = one.submit({**gate.observation, "row": -1, "x": np.zeros(3)})
        gate.wait_entered()
        pendings = [
            client.submit({"row": row, "x": np.arange(3.0) + row}) for row, client in enumerate([one, other] * 4)
        ]
        gate.open()

        results = [pending.result() for pending in pendings]

        assert held.result()["batch"] == 1
        assert [found["row"] for found in results] == list(range(8))
        assert [found["batch"] for found in results] == [4] * 8
        for row, found in enumerate(results):
            assert_same(found["y"], (np.arange(3.0) + row) * 2)
    daemon.wait_counted(batches=before["batches"] + 3, served=before["served"] + 9)


def test_a_reset_keeps_its_place_among_the_requests_of_a_batch(daemon: Daemon, gate: Gate) -> None:
    before = daemon.status()["requests"]["served"]
    with daemon.client(slots=8) as client:
        held = client.submit({**gate.observation, "row": -1, "x": np.zeros(3)})
        gate.wait_entered()
        early = [client.submit({"row": row, "x": np.zeros(3)}) for row in range(2)]
        reset = Pending(client._pipeline.control, time.monotonic_ns(), time.monotonic_ns() + 60 * 10**9)
        client._pipeline.publish(reset, None, RequestOptions(Kind.RESET))
        after = client.submit({"row": 2, "x": np.zeros(3)})
        gate.open()

        assert after.result()["order"][-5:] == ["row -1", "row 0", "row 1", "reset", "row 2"]
        assert [pending.result()["row"] for pending in [held, *early]] == [-1, 0, 1]
        assert reset.result() is None
    daemon.wait_counted(served=before + 5)


def test_one_bad_row_fails_alone(daemon: Daemon, gate: Gate) -> None:
    before = daemon.status()["requests"]
    with daemon.client(slots=8) as client:
        held = client.submit({**gate.observation, "row": -1, "x": np.zeros(3)})
        gate.wait_entered()
        good = [client.submit({"row": row, "x": np.full(3, row)}) for row in range(2)]
        bad = client.submit({"row": 2, "x": np.zeros(3), "bad": True})
        misshapen = client.submit({"row": 3, "x": np.zeros(4)})
        gate.open()

        held.result()
        with pytest.raises(InferenceFailed, match="ValueError: row 2 is bad"):
            bad.result()
        assert [pending.result()["row"] for pending in good] == [0, 1]
        assert_same(misshapen.result()["y"], np.zeros(4))
    daemon.wait_counted(served=before["served"] + 4, failed=before["failed"] + 1)


@pytest.mark.long
def test_an_engine_that_dies_in_a_batch_answers_every_row(
    start_daemon: Callable[..., Daemon], gate: Gate, tmp_path: Path
) -> None:
    (tmp_path / "model.toml").write_text("[model]\nmax_batch = 4\n")
    (tmp_path / "policy.py").write_text(
        "import os\n"
        "class Policy:\n"
        "    def __init__(self, path, device): pass\n"
        "    def infer(self, observation): return self.infer_batch([observation])[0]\n"
        "    def infer_batch(self, observations):\n"
        "        if any(observation['die'] for observation in observations): os._exit(3)\n"
        "        return [observation['row'] for observation in observations]\n"
    )
    daemon = start_daemon(tmp_path)
    with daemon.client(slots=4, timeout=100) as client:
        pendings = [client.submit({"row": row, "die": row == 1}) for row in range(3)]

        outcomes = []
        for pending in pendings:
            try:
                outcomes.append(pending.result())
            except EngineLost as error:
                outcomes.append(type(error).__name__)

        assert outcomes[1] == "EngineLost"
        assert client.infer({"row": 9, "die": False}) == 9
