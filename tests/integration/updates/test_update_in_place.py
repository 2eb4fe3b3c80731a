"""--in-place: the old model goes first. Requests wait meanwhile, and if the new one fails the old one is back."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shmserve.client import ServiceUnavailable, ShmClient
from shmserve.package_files import content_version
from tests.support.admin_command import admin, end_admin, engines_of, refused, served, start_admin, update
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gain_packages import gain_package
from tests.support.gate import Gate
from tests.support.packages_bad.models import BadModel

_X = {"x": np.arange(3), "robot": "r"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(gain_package(tmp_path_factory.mktemp("packages"), 2))
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[ShmClient]:
    with daemon.client() as client:
        client.infer(_X)
        yield client


def test_requests_wait_and_are_answered_by_the_new_model(
    daemon: Daemon, client: ShmClient, gate: Gate, tmp_path: Path
) -> None:
    package = gain_package(tmp_path, 3, loads_behind=str(gate.path))
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(admin, daemon, "update-model", package, "--in-place")
        gate.wait_entered()
        # The old model's memory is free before the new one takes its own.
        (engine,) = engines_of(daemon.pid)
        assert daemon.status()["engine"] is None and daemon.status()["state"] == "updating"
        waiting = [client.submit(_X) for _ in range(3)]
        assert not any(pending.done() for pending in waiting)
        gate.open()

        assert [pending.result()["k"] for pending in waiting] == [3, 3, 3]
        done = changing.result()
    assert done.returncode == 0, done.stderr
    steps = [line.rsplit(maxsplit=2)[0].strip() for line in done.stdout.splitlines()[:-1]]
    assert steps == ["receive", "check", "stop", "start", "load", "warm up", "swap"]
    assert engines_of(daemon.pid) == [engine] == [daemon.engine_pid]
    assert served(daemon) == content_version(package)


@pytest.mark.fault("T82")
@pytest.mark.long
def test_the_old_model_is_back_if_the_new_one_fails(daemon: Daemon, client: ShmClient, tmp_path: Path) -> None:
    before, k = served(daemon), client.infer(_X)["k"]
    bad = BadModel("raises", (), init="raise OSError('no camera')").write(tmp_path)
    pending = client.submit(_X)

    with refused("engine", "load failed: OSError: no camera"):
        update(daemon, bad, in_place=True)

    # The reply comes once the old model serves again.
    assert served(daemon) == before
    assert (daemon.status()["state"], len(engines_of(daemon.pid))) == ("ready", 1)
    assert (pending.result()["k"], client.infer(_X)["k"]) == (k, k)
    assert f"version {before} is started again" in daemon.log


@pytest.mark.long
def test_the_old_model_is_back_if_the_new_one_has_another_contract(
    daemon: Daemon, client: ShmClient, tmp_path: Path
) -> None:
    before, k = served(daemon), client.infer(_X)["k"]

    with refused("contract", "--allow-contract-change"):
        update(daemon, gain_package(tmp_path, 2.5), in_place=True)

    assert (served(daemon), client.infer(_X)["k"], len(engines_of(daemon.pid))) == (before, k, 1)


@pytest.mark.long
def test_the_old_model_is_back_if_the_command_is_killed(
    daemon: Daemon, client: ShmClient, gate: Gate, tmp_path: Path
) -> None:
    before, k = served(daemon), client.infer(_X)["k"]
    process = start_admin(daemon, "update-model", gain_package(tmp_path, 5, loads_behind=str(gate.path)), "--in-place")
    gate.wait_entered()
    pending = client.submit(_X)

    process.kill()
    end_admin(process)

    assert pending.result()["k"] == k
    daemon.wait_ready()
    assert (served(daemon), len(engines_of(daemon.pid))) == (before, 1)


@pytest.mark.long
def test_sigterm_in_the_middle_ends_the_daemon_and_brings_nothing_back(
    start_daemon: Callable[..., Daemon], gate: Gate, tmp_path: Path
) -> None:
    old = gain_package(tmp_path, 2)
    daemon = start_daemon(old, config="drain_s = 0.5\n")
    process = start_admin(daemon, "update-model", gain_package(tmp_path, 3, loads_behind=str(gate.path)), "--in-place")
    gate.wait_entered()
    pid = daemon.pid

    daemon.stop()

    assert end_admin(process).returncode in (1, 3)
    assert engines_of(pid) == []
    daemon.start()
    assert served(daemon) == content_version(old)


@pytest.mark.long
def test_a_supervisor_killed_after_it_stopped_the_old_model_begins_with_it(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    old = gain_package(tmp_path, 2)
    daemon = make_daemon(old)
    daemon.environment = {"SHMSERVE_FAILPOINTS": "update.stopped_old=kill"}
    daemon.start()
    with pytest.raises(ServiceUnavailable):
        update(daemon, gain_package(tmp_path, 3), in_place=True)
    assert daemon.wait_end() == -signal.SIGKILL

    daemon.start()

    assert served(daemon) == content_version(old)
    wait_until("one engine is there", lambda: len(engines_of(daemon.pid)) == 1)
