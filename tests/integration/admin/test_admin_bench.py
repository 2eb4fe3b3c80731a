"""The load tool: separate processes ask the running service, and what it says adds up."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import ShmClient
from shmserve.client.cli.load_process import ask
from shmserve.client.cli.synthetic_observation import NotKnown, synthetic_observation
from shmserve.contract import describe_tree
from tests.support.daemon_process import SHMSERVED, Daemon
from tests.support.gate import Gate

pytestmark = pytest.mark.long


def bench(daemon: Daemon, *arguments: object) -> subprocess.CompletedProcess[str]:
    admin = str(SHMSERVED.with_name("shmserve-admin"))
    command = [admin, "--name", daemon.name, "--runtime-dir", str(daemon.runtime_dir)]
    command += ["bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_clients_and_service_count_the_same(start_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    daemon = start_daemon("echo")
    np.savez(tmp_path / "example.npz", image=np.zeros((64, 64, 3), np.uint8), task=np.array("fold"))

    result = bench(daemon, "--clients", 3, "--seconds", 1, "--example", tmp_path / "example.npz", "--json")

    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["requests"] > 3 and found["errors"] == {}
    assert daemon.status()["requests"]["served"] == found["requests"] + 3 * 20, "and what they warmed up with"
    assert found["fewest_by_a_client"] <= found["requests"] / 3 <= found["most_by_a_client"]
    latency = found["latency_us"]
    assert latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
    assert set(found["stages_us"]) == {"queued", "staged", "infer", "copied", "client"}
    assert sum(stage["mean"] for stage in found["stages_us"].values()) <= latency["mean"] * 1.01
    assert daemon.status()["clients"] == []


def test_a_rate_is_kept_and_not_exceeded(echo: Daemon, tmp_path: Path) -> None:
    np.savez(tmp_path / "example.npz", a=np.zeros(1))

    found = json.loads(
        bench(
            echo, "--rate", 20, "--clients", 2, "--seconds", 2, "--example", tmp_path / "example.npz", "--json"
        ).stdout
    )

    assert found["requests"] + sum(found["errors"].values()) <= 2 * 20 * 2
    assert found["rate_hz"] == 20


def test_a_service_that_hangs_makes_every_request_late_that_was_due(client: ShmClient, gate: Gate) -> None:
    begin_ns, hung_s = time.monotonic_ns(), 0.5
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, client, gate.observation, begin_ns, 3.0, 100.0)
        gate.wait_entered()
        time.sleep(max(0.0, begin_ns / 1e9 + hung_s - time.monotonic()))
        gate.open()
        found = asking.result()

    late = [row[0] for row in found["rows"] if row[0] > 100_000]
    assert len(late) >= 35, "those that were due in the half second, but for the last tenth of it"
    assert max(late) >= hung_s * 1e6


def test_errors_are_counted_by_their_name(obedient: Daemon, client: ShmClient, gate: Gate) -> None:
    failing = ask(client, {"do": "raise", "text": "no"}, time.monotonic_ns(), 0.1, None)
    try:
        with obedient.client(timeout=0.01) as hasty:
            late = ask(hasty, gate.observation, time.monotonic_ns(), 0.1, None)
    finally:
        gate.open()

    assert failing["rows"] == [] and set(failing["errors"]) == {"InferenceFailed"}
    assert late["rows"] == [] and "RequestTimeout" in late["errors"]


def test_without_an_example_the_observation_is_made_up_from_the_contract(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("described")
    assert daemon.status()["model"]["contract"]["observation"]

    result = bench(daemon, "--seconds", 0.5)

    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("1 client, one after the other, 0.5 s: ")
    assert lines[1].startswith("engine busy ")
    assert [line.split()[0] for line in lines[3:]] == ["latency", "queued", "staged", "infer", "copied", "client"]


def test_a_model_without_an_example_needs_one_before_its_first_request(start_daemon: Callable[..., Daemon]) -> None:
    result = bench(start_daemon("echo"), "--seconds", 0.5)

    assert result.returncode == 1
    assert "--example FILE.npz" in result.stderr


def test_a_bench_without_a_daemon_says_so(make_daemon: Callable[..., Daemon]) -> None:
    assert bench(make_daemon("echo")).returncode == 3


TREE: dict[str, Any] = {
    "image": np.zeros((2, 3), np.uint8),
    "state": {"joints": [0.0, 0.0], "a.b": np.zeros(2), 'quo"te': 0, "": False},
    "poses": [np.zeros(1, np.float32), {"x": ""}],
    "nothing": None,
    "empty": {},
}


def test_a_made_up_observation_has_the_contract_it_was_made_from() -> None:
    entries = json.loads(json.dumps(describe_tree(TREE)))
    assert describe_tree(synthetic_observation(entries)) == entries


def test_an_observation_that_is_one_array_is_made_up_as_one() -> None:
    made = synthetic_observation(describe_tree(np.zeros((3, 2), np.float16)))

    assert made.shape == (3, 2) and made.dtype == np.float16


def test_an_observation_that_cannot_be_synthesized_needs_an_example() -> None:
    for entry in ({"type": "torch.Size"}, {"dtype": "float17", "shape": [1]}):
        with pytest.raises(NotKnown, match="--example"):
            synthetic_observation({"a": entry})
