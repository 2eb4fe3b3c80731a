"""An engine on a device: pipelined requests, what goes wrong there, and what status says. Each on the late GPU and on a real one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import EngineLost, InferenceFailed
from tests.support.admin_command import refused, update
from tests.support.daemon_process import POLICIES, Daemon, wait_until

ON_DEVICE = ("--device", "cuda:0")
DEVICES = ["late", pytest.param("gpu", marks=pytest.mark.gpu)]
Start = Callable[..., Daemon]


@pytest.fixture
def start(make_daemon: Callable[..., Daemon]) -> Start:
    """Starts a daemon with its policy on a device; `late` are the settings of the late one."""

    def start(
        device: str, policy: str | Path = "on_device", *, late: dict[str, Any] | None = None, **settings: Any
    ) -> Daemon:
        daemon = make_daemon(policy, arguments=(*ON_DEVICE, *settings.pop("arguments", ())), **settings)
        if device == "late":
            daemon.use_late_cuda(**(late or {}))
        return daemon.start()

    return start


def gpu(daemon: Daemon) -> dict[str, Any]:
    """What status says of the device."""
    found = daemon.status()["model"]["gpu"]
    assert isinstance(found, dict)
    return found


def package(folder: Path, name: str = "package", *, policy: str = "on_device", manifest: str = "") -> Path:
    """A package of its own: the policy with more lines in the table [model]."""
    path = shutil.copytree(POLICIES / policy, folder / name)
    with (path / "model.toml").open("a") as file:
        file.write(manifest)
    return path


@pytest.mark.parametrize("transport", ["named", pytest.param("sealed", marks=pytest.mark.long)])
@pytest.mark.parametrize("device", DEVICES)
def test_requests_in_flight_are_answered_each_with_its_own(device: str, transport: str, start: Start) -> None:
    daemon = start(device, arguments=("--transport", transport))
    with daemon.client(slots=8) as one, daemon.client(slots=8) as other:
        for turn in range(30):
            pendings = [
                (row, client.submit({"x": np.full(8 + row % 3, turn * 10 + row, np.float32)}))
                for row in range(8)
                for client in (one, other)
            ]
            for row, pending in pendings:
                found = pending.result()
                np.testing.assert_array_equal(found["y"], np.full(8 + row % 3, 2 * (turn * 10 + row), np.float32))
        assert found["where"] == "cuda:0"
    assert daemon.wait_counted(served=480)["batches"] < 480
    assert gpu(daemon)["staging"] == "pinned"
    assert gpu(daemon)["warnings"] == []


@pytest.mark.parametrize("device", DEVICES)
def test_a_bad_row_fails_alone(device: str, start: Start) -> None:
    daemon = start(device)
    with daemon.client(slots=8) as client:
        for what, error in (("raise", "LookupError: asked to"), ("oom", "OutOfMemoryError: the device has not enough")):
            pendings = [client.submit({"x": np.ones(4), "do": what if row == 5 else "nothing"}) for row in range(8)]
            with pytest.raises(InferenceFailed, match=error):
                pendings.pop(5).result()
            for pending in pendings:
                np.testing.assert_array_equal(pending.result()["y"], np.full(4, 2.0))
    assert daemon.status()["engine"]["restarts"] == 0


@pytest.mark.fault("T86")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.long
def test_a_request_that_loses_the_device_fails_and_the_next_engine_answers_the_others(
    device: str, start: Start
) -> None:
    daemon = start(device)
    with daemon.client(slots=8, timeout=100) as client, daemon.client(timeout=100) as other:
        before = daemon.engine_pid
        with pytest.raises(InferenceFailed, match=r"DeviceError: .*device-side assert triggered.*engine is restarted"):
            client.infer({"x": np.ones(4), "do": "assert"})

        np.testing.assert_array_equal(other.infer({"x": np.ones(4)})["y"], np.full(4, 2.0))

        assert daemon.engine_pid != before
    assert "the device is lost to this engine" in daemon.log


@pytest.mark.fault("T86")
@pytest.mark.long
def test_a_device_lost_while_idle_is_noticed_and_the_next_engine_answers(start: Start) -> None:
    daemon = start("late")
    with daemon.client(slots=2, timeout=100) as client:
        before = daemon.engine_pid
        client.infer({"x": np.ones(4), "do": "lose_later"})

        wait_until("the engine is another one", lambda: daemon.engine_pid != before)

        for _ in range(3):
            np.testing.assert_array_equal(client.infer({"x": np.ones(4)})["y"], np.full(4, 2.0))
    assert "the device is lost to this engine" in daemon.log
    assert "status 75" in daemon.log


@pytest.mark.fault("T86")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.long
def test_of_a_batch_that_loses_the_device_only_the_culprit_is_not_answered(device: str, start: Start) -> None:
    daemon = start(device)
    with daemon.client(slots=8, timeout=100) as client:
        client.infer({"x": np.ones(4)})
        pendings = [
            client.submit({"x": np.full(4, row), "do": "assert" if row == 2 else "nothing"}) for row in range(6)
        ]
        outcomes: list[Any] = []
        for pending in pendings:
            try:
                outcomes.append(pending.result()["y"][0])
            except (InferenceFailed, EngineLost) as error:
                outcomes.append(type(error).__name__)

    assert outcomes in ([0, 2, name, 6, 8, 10] for name in ("InferenceFailed", "EngineLost"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.long
def test_a_result_that_waits_for_room_is_not_overwritten(device: str, start: Start) -> None:
    daemon = start(device, "obedient")
    with daemon.client(slots=4) as client:
        large = [client.submit({"do": "grow", "items": 300_000 + n, "value": n}) for n in range(3)]
        for n, pending in enumerate(large):
            np.testing.assert_array_equal(pending.result(), np.full(300_000 + n, n))


@pytest.mark.parametrize("transport", ["named", "sealed"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.long
def test_large_requests_are_read_from_where_they_are(device: str, transport: str, start: Start) -> None:
    daemon = start(device, config="register_bytes = 1048576\n", arguments=("--transport", transport))
    with daemon.client(slots=2) as client, daemon.client(slots=2) as small:
        for size in (1000, 300_000, 500_000):  # the second one grows the channel, and so does the third
            x = np.random.default_rng(size).standard_normal(size).astype(np.float32)
            for _ in range(3):
                np.testing.assert_array_equal(client.infer({"x": x})["y"], x * 2)
        small.infer({"x": np.ones(3)})
        assert gpu(daemon)["register_bytes"] == 1 << 20
        if device == "late" or not gpu(daemon)["warnings"]:
            wait_until("the client's memory is registered", lambda: gpu(daemon)["registered_channels"] == 1)
            wait_until("the memory before is not", lambda: 4_000_000 < gpu(daemon)["registered_bytes"] < 6_000_000)
            np.testing.assert_array_equal(client.infer({"x": x})["y"], x * 2)
    wait_until("the client's memory is given up", lambda: gpu(daemon)["registered_channels"] == 0)


@pytest.mark.fault("T69")
@pytest.mark.long
def test_memory_that_cannot_be_registered_is_staged_and_the_status_says_so(start: Start) -> None:
    daemon = start("late", late={"registers": False}, config="register_bytes = 1048576\n")
    x = np.arange(300_000, dtype=np.float32)
    with daemon.client() as client:
        np.testing.assert_array_equal(client.infer({"x": x})["y"], x * 2)

        wait_until("it was tried", lambda: gpu(daemon)["warnings"])
        (warning,) = gpu(daemon)["warnings"]
        assert "cannot be registered" in warning and "operation not supported" in warning
        assert gpu(daemon)["registered_channels"] == 0


@pytest.mark.fault("T69")
@pytest.mark.long
def test_memory_that_cannot_be_locked_is_copied_as_pageable_and_the_status_says_so(start: Start) -> None:
    daemon = start("late", late={"pin_limit": 100_000}, config="register_bytes = 0\n")
    with daemon.client() as client:
        np.testing.assert_array_equal(client.infer({"x": np.ones(50_000)})["y"], np.full(50_000, 2.0))

        found = gpu(daemon)
        assert found["staging"] == "pageable"
        assert "free memory of the host" in found["warnings"][0]


@pytest.mark.long
def test_a_client_with_requests_too_large_for_the_device_is_evicted(start: Start) -> None:
    daemon = start("late", late={"memory_limit": 4 << 20}, config="register_bytes = 0\n")
    with daemon.client() as client, daemon.client(max_retries=0) as greedy:
        for _ in range(2):
            client.infer({"x": np.ones(10)})
        with pytest.raises(ConnectionError):
            greedy.infer({"x": np.ones(3_000_000)}, timeout=5)

        for size in range(10, 16):
            np.testing.assert_array_equal(client.infer({"x": np.ones(size)})["y"], np.full(size, 2.0))
    assert daemon.status()["engine"]["restarts"] == 0


@pytest.mark.long
def test_a_model_that_does_not_fit_next_to_the_serving_one_is_refused(start: Start, tmp_path: Path) -> None:
    used = {"model_bytes": 6 << 30, "free_bytes": 4 << 30, "total_bytes": 12 << 30}
    daemon = start("late", late=used)
    serving = daemon.status()["model"]["version"]
    large = package(tmp_path, "large", manifest="device_bytes = 5368709120\n")

    with refused("device_memory", "4096 MiB free of 12288", "5120", "--in-place"):
        update(daemon, large)
    # Nothing was loaded, and as large as the one that serves is too large as well.
    with refused("device_memory", "the 6144 MiB of the model that serves", "--in-place"):
        update(daemon, package(tmp_path, "alike", manifest="# another version\n"))

    assert daemon.status()["model"]["version"] == serving
    update(daemon, large, in_place=True)
    assert daemon.status()["model"]["version"] != serving


@pytest.mark.long
def test_no_second_engine_is_kept_where_its_model_does_not_fit_beside_the_serving_one(start: Start) -> None:
    used = {"model_bytes": 6 << 30, "free_bytes": 4 << 30, "total_bytes": 12 << 30}
    daemon = start("late", late=used, config='standby = "loaded"\n')

    def standby() -> Any:
        return daemon.status()["engine"]["standby"]

    # It starts with a low priority, which takes long on a busy machine.
    wait_until("it was tried", lambda: standby()["state"] == "failed", 120.0)
    assert "4096 MiB free of 12288" in standby()["reason"]
    assert daemon.status()["state"] == "ready"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.long
def test_a_recorded_policy_returns_the_results_of_a_plain_call(device: str, start: Start) -> None:
    daemon = start(device, "recordable")
    assert gpu(daemon)["graphs"] == 4
    with daemon.client(slots=8, check_contract=False) as one, daemon.client(slots=8) as other:
        for turn in range(10):
            x = [np.full((3, 8), turn + row, np.float32) for row in range(6)]
            pendings = [(row, client.submit({"x": x[row]})) for row in range(6) for client in (one, other)]
            for row, pending in pendings:
                found = pending.result()
                np.testing.assert_allclose(found["y"], x[row].sum() * np.arange(4, dtype=np.float32), rtol=1e-5)
        with pytest.raises(
            ValueError, match=r"CUDA graph, which takes only observations like the one it was recorded with.*x"
        ):
            one.infer({"x": np.zeros((4, 8), np.float32)})
        one.infer({"x": x[0]})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x = x * x.sum().item()", r"cannot be recorded \(line 20 of policy.py, `x = x \* x.sum\(\).item\(\)`\)"),
        ("self.calls += 1; x = x * self.calls", "the recorded policy gives another action than a direct call"),
    ],
)
@pytest.mark.long
def test_an_observation_that_cannot_be_recorded_is_refused(
    device: str, line: str, said: str, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    path = package(tmp_path, policy="recordable")
    text = (path / "policy.py").read_text().replace("# (a test puts a line here)", line)
    (path / "policy.py").write_text(text)
    daemon = make_daemon(path, arguments=ON_DEVICE)
    if device == "late":
        daemon.use_late_cuda()

    assert daemon.run_to_end() == 1

    assert re.search(said, daemon.log), daemon.log


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.long
def test_numpy_styles_get_the_hosts_arrays(device: str, start: Start) -> None:
    daemon = start(device, "openpi_style")
    assert daemon.status()["model"]["device"] == "cuda:0"
    assert daemon.status()["state"] == "ready"
