"""What a service tells of itself: to its clients, and to its operator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import ShmClient
from shmserve.varlink_connection import VarlinkConnection
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gate import Gate


def test_a_client_reads_the_inputs_and_outputs_of_the_model(described: Daemon) -> None:
    with described.client() as client:
        metadata = client.describe()

    assert metadata["name"] == "described"
    assert len(metadata["version"]) == 16 and int(metadata["version"], 16) >= 0
    assert metadata["device"] == "cpu"
    assert metadata["observation"]["image"] == {"dtype": "uint8", "shape": [480, 640, 3]}
    assert metadata["observation"]["state"] == {"dtype": "float32", "shape": [6]}
    assert metadata["observation"]["instruction"] == {"type": "str"}
    assert metadata["action"]["action"] == {"dtype": "float32", "shape": [16, 7]}


def test_the_metadata_of_a_model_reaches_client_and_operator(described: Daemon) -> None:
    with described.client() as client:
        said = client.describe()["metadata"]

    assert said == {
        "low": ["-inf", 0.0],
        "high": ["inf", "nan"],
        "joints": ["base", "elbow"],
        "scale": [0.5, 2.0],
        "path": "weights",
    }
    assert described.status()["model"]["metadata"] == said


def test_the_example_warms_the_model_up_and_sizes_the_channel(described: Daemon) -> None:
    wait_until("the others are gone", lambda: not described.status()["clients"])
    with described.client() as client:
        client.connect()
        (attached,) = described.status()["clients"]
        image = np.zeros((480, 640, 3), np.uint8)
        found = client.infer({"instruction": "pick", "state": np.zeros(6, np.float32), "image": image})

        assert found["runs"] > 1
        (seen,) = described.status()["clients"]
        assert seen["generation"] == attached["generation"], "the image fits at once"
    assert described.status()["model"]["infer_ms"] is not None


def test_a_reply_tells_which_model_answered_and_where_the_time_went(described: Daemon) -> None:
    with described.client() as client:
        observation = {
            "instruction": "pick",
            "state": np.zeros(6, np.float32),
            "image": np.zeros((480, 640, 3), np.uint8),
        }
        reply = client.request(observation)
        timing = reply.timing

        assert reply.model_version == client.describe()["version"]
        assert reply.request_id == 1
        parts = (timing.queued_us, timing.staged_us, timing.infer_us, timing.copied_us)
        assert all(part > 0 for part in parts)
        assert sum(parts) <= timing.round_trip_us
        assert list(reply.action) == list(client.infer(observation))
        pending = client.submit(observation)
        assert pending.reply is None  # until its reply is processed
        pending.result()
        assert pending.reply is not None
        assert pending.reply.request_id == 3


def test_status_tells_everything_of_the_service(obedient: Daemon, client: ShmClient, gate: Gate) -> None:
    client.infer({"do": "echo", "value": 1})
    # The engine counts a request after its client has the reply.
    wait_until("the request is counted", lambda: obedient.status()["requests"]["served"])
    status = obedient.status()

    assert status["service"] == "t"
    assert status["state"] == "ready" and status["error"] is None
    assert status["pid"] == obedient.pid
    assert status["transport"] in ("named", "sealed")
    assert status["engine"]["pid"] not in (obedient.pid, os.getpid())
    assert status["model"]["name"] == "obedient"
    assert Path(status["directory"]) == obedient.service_dir
    me = [found for found in status["clients"] if found["pid"] == os.getpid()]
    assert me and all(found["uid"] == os.getuid() for found in me)
    assert status["requests"]["served"] >= 1
    assert {"failed", "rejected"} <= status["requests"].keys()
    total = status["latency"]["total"]
    assert 0 < total["p50_us"] <= total["p90_us"] <= total["p99_us"] <= total["p999_us"]


def test_the_status_is_given_while_the_model_is_busy(obedient: Daemon, client: ShmClient, gate: Gate) -> None:
    held = client.submit(gate.observation)
    gate.wait_entered()

    assert obedient.status()["state"] == "ready"
    assert client.describe()["name"] == "obedient"
    gate.open()

    assert held.result()["waited"]


@pytest.mark.parametrize("interface", ["io.shmserve.Client", "io.shmserve.Admin"])
def test_both_sockets_describe_themselves(obedient: Daemon, interface: str) -> None:
    socket = obedient.client_socket if interface.endswith("Client") else obedient.admin_socket

    def call(method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return connection.call(f"org.varlink.service.{method}", parameters, timeout_s=10.0).parameters

    with VarlinkConnection.connect(socket, 10.0) as connection:
        assert {"org.varlink.service", interface} <= set(call("GetInfo")["interfaces"])
        assert f"interface {interface}" in call("GetInterfaceDescription", {"interface": interface})["description"]
