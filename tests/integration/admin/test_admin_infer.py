"""`shmserve-admin infer`: a model is tried without a client, and what it prints is what the model gave."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client.cli.connection import AdminConnection
from shmserve.npz_file import read_npz
from shmserve.varlink import VarlinkError
from tests.support.admin_command import admin, admin_json
from tests.support.daemon_process import Daemon, wait_until
from tests.support.joint_packages import STATED, joint_package


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(joint_package(tmp_path_factory.mktemp("packages"), "joints", STATED.replace("rgb", "bgr"))) as daemon:
        yield daemon


def test_the_action_its_timing_and_the_version_are_printed(daemon: Daemon) -> None:
    done = admin(daemon, "infer", "--repeat", 3, "--set", "state=[1, 2.5, 3]")

    assert (done.returncode, done.stderr) == (0, "")
    version = daemon.status()["model"]["version"]
    lines = done.stdout.splitlines()
    assert lines[0] == f"joints version {version} on cpu, asked with the model's example, 1 --set"
    assert lines[2].split("  ")[:3] == [
        "actions",
        "float32[16, 3]",
        "1, 2.5, 3, 1, 2.5, 3 ... (48 numbers from 1 to 3)",
    ]
    first = next(number for number, line in enumerate(lines) if line.startswith("time, "))
    assert lines[first].split()[2:] == ["last", "p50", "p99", "max"]
    assert [line.split("  ")[0] for line in lines[first + 1 : first + 6]] == [
        "queued",
        "staged",
        "infer",
        "copied",
        "round trip",
    ]


def test_without_an_observation_the_model_s_own_example_is_sent(daemon: Daemon) -> None:
    found = admin_json(daemon, "infer")

    assert found["action"]["actions"]["values"] == [[0.5, 1.0, 2.0]] * 16
    assert found["observation"]["source"] == "the model's example"


def test_an_example_is_written_to_memory_alone(daemon: Daemon) -> None:
    read, write = os.pipe()
    try:
        with AdminConnection(daemon.name, daemon.runtime_dir) as connection:
            for descriptor in (-1, write):
                with pytest.raises(VarlinkError, match="InvalidParameter"):
                    connection.call("Example", fd=descriptor)
    finally:
        os.close(read)
        os.close(write)


def test_json_has_the_values_and_out_the_whole_action(daemon: Daemon, tmp_path: Path) -> None:
    frame = np.arange(4 * 6 * 3, dtype=np.uint8)
    (tmp_path / "frame.ppm").write_bytes(b"P6\n6 4\n255\n" + frame.tobytes())
    (tmp_path / "seen.json").write_text(json.dumps({"state": [1, 2, 3], "points": [[0, 0, 1]] * 7}))
    out = tmp_path / "expected.npz"

    found = admin_json(
        daemon,
        "infer",
        "--example",
        tmp_path / "seen.json",
        "--image",
        "camera=" + str(tmp_path / "frame.ppm"),
        "--out",
        out,
    )

    assert found["action"]["points"] == {"type": "int", "values": 7}
    assert found["observation"]["entries"]["points"] == {"dtype": "float32", "shape": [7, 3]}
    assert found["action"]["actions"]["values"] == [[1.0, 2.0, 3.0]] * 16
    assert found["requests"] == 1 and set(found["timing_us"]["round_trip"]) == {"last"}
    np.testing.assert_equal(read_npz(out)["actions"], np.tile(np.arange(1, 4, dtype=np.float32), (16, 1)))


def test_what_the_model_does_not_take_is_refused_with_its_differences(daemon: Daemon) -> None:
    done = admin(daemon, "infer", "--shape", "state:4:float32")

    assert done.returncode == 1
    assert "observation.state: float32[3] -> float32[4]" in done.stderr


_TAKES_ANYTHING = '''\
"""Has no example, and takes its observation apart."""


class Policy:
    def __init__(self, path, device):
        pass

    def infer(self, observation):
        if observation.pop("fails", False):
            raise ValueError("as asked")
        return {"sum": observation.pop("state").sum(), "left": sorted(observation)}
'''


def test_the_first_observation_that_is_served_is_remembered_and_refuses_nobody(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    (tmp_path / "free").mkdir()
    (tmp_path / "free" / "policy.py").write_text(_TAKES_ANYTHING)
    daemon = start_daemon(tmp_path / "free")
    with daemon.client() as client:
        described = client.describe()
        assert described["observation"] is described["observation_source"] is None
        assert admin(daemon, "infer").returncode == 1
        with pytest.raises(RuntimeError, match="as asked"):
            client.infer({"fails": True, "other": 1})

        client.infer({"state": np.ones(3, np.float32), "task": "secret"})
        first: dict[str, Any] = wait_until("it is remembered", lambda: client.describe()["observation"])

        assert first == {"state": {"dtype": "float32", "shape": [3]}, "task": {"type": "str"}}
        described = client.describe()
        assert described["observation_source"] == "first request"
        assert described["contract"] == {"observation": None, "action": None}
        assert client.infer({"state": np.ones((2, 2)), "more": [1]}) == {"sum": 4.0, "left": ["more"]}
        assert client.describe()["observation"] == first
    with daemon.client() as other:
        assert other.infer({"state": np.ones(9, np.int64)})["sum"] == 9
    assert admin_json(daemon, "infer")["action"]["left"]["values"] == ["task"]
    found = admin_json(daemon, "bench", "--seconds", 0.2)
    assert found["requests"] and not found["errors"]
    found = admin_json(daemon, "bench", "--seconds", 0.2, "--shape", "state:5:uint8", "--set", "task=fold")
    assert found["requests"] and not found["errors"]
