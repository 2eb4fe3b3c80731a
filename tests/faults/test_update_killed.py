"""kill -9 of the supervisor and of engines at every step of an update: the last good version is what serves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shmserve.client import ServiceUnavailable
from shmserve.package_files import content_version
from tests.support import watchdog
from tests.support.admin_command import engines_of, refused, served, staged, update
from tests.support.daemon_process import Daemon, is_running, wait_until
from tests.support.gain_packages import gain_package, gains
from tests.support.gate import Gate
from tests.support.robot_process import Robot
from tests.support.update_scale import THOROUGH, some_of
from tests.support.update_steps import AFTER, BEFORE

Start = Callable[..., Daemon]
StartRobot = Callable[..., Robot]

_X = {"x": np.arange(3), "robot": "r"}


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Every step takes the start of a daemon, and most that of a second engine."""
    with watchdog.limit(900 if THOROUGH else 150):
        yield


def test_there_are_enough_steps_to_be_killed_at() -> None:
    assert len(BEFORE + AFTER) >= 12


@pytest.mark.fault("T84")
@pytest.mark.long
def test_a_supervisor_killed_at_any_step_of_an_update_leaves_the_last_good_version(
    make_daemon: Start, start_robot: StartRobot, tmp_path: Path
) -> None:
    """Each run of the daemon shows what the kill before it left, and is then killed at the next step."""
    steps = some_of(BEFORE + AFTER, 8)
    packages = [gain_package(tmp_path, k) for k in range(2, len(steps) + 3)]
    good = content_version(packages[0])
    daemon = make_daemon(packages[0]).start()
    robot = start_robot("gain_load", daemon, 1, gains(*packages), 0.005)
    assert robot.says() == "busy"
    daemon.stop()
    for step, package in zip(steps, packages[1:], strict=True):
        daemon.environment = {"SHMSERVE_FAILPOINTS": f"{step.partition('@')[0]}=kill{''.join(step.partition('@')[1:])}"}
        daemon.start()
        pid = daemon.pid
        assert (served(daemon), staged(daemon), daemon.status()["problems"]) == (good, [], []), step
        with pytest.raises(ServiceUnavailable):
            update(daemon, package)
        assert daemon.wait_end() == -signal.SIGKILL, step
        wait_until("its engines are gone", lambda pid=pid: not engines_of(pid))
        if step in AFTER:
            good = content_version(package)
    daemon.environment = {}
    daemon.start()
    assert (served(daemon), staged(daemon)) == (good, [])

    report = robot.finish(signal.SIGTERM)

    assert (report["wrong"], report["failed"]) == ([], 0)
    assert sum(report["answers"].values()) == report["asked"]
    assert report["attachments"] >= len(steps)


@pytest.mark.long
def test_an_engine_killed_at_any_step_of_an_update_leaves_a_version_that_serves(
    make_daemon: Start, start_robot: StartRobot, tmp_path: Path
) -> None:
    """The new engine dies at five steps; then the old one dies when it is told to pause, and another after that."""
    packages = [gain_package(tmp_path, k) for k in range(2, 10)]
    versions = [content_version(package) for package in packages]
    daemon = make_daemon(packages[0])
    # Engines are numbered as they start. The first one was paused twice, for engines 5 and 6, before engine 7.
    fatal = [
        *("engine.2.loading=kill", "engine.3.loaded=kill", "engine.4.warm=kill"),
        *("engine.5.serve=kill", "engine.6.serving=kill"),
        *("engine.1.pause=kill@3", "engine.7.paused=kill"),
    ]
    daemon.environment = {"SHMSERVE_FAILPOINTS": ",".join(fatal)}
    daemon.start()
    robot = start_robot("gain_load", daemon, 1, gains(*packages), 0.002)
    assert robot.says() == "busy"
    for stage, package in zip(("load", "warm up", "warm up", "swap"), packages[1:5], strict=True):
        with refused("engine", f"{stage} failed: the engine died: killed by SIGKILL"):
            update(daemon, package)
        assert served(daemon) == versions[0]

    # It had begun to serve: from here on it is probation that goes back.
    assert update(daemon, packages[5])["changed"]
    wait_until("it is rolled back", lambda: daemon.status()["rolled_back"])
    daemon.wait_ready()
    assert served(daemon) == versions[0]
    assert versions[5] in daemon.status()["rolled_back"]
    for package, version in zip(packages[6:], versions[6:], strict=True):
        assert update(daemon, package)["changed"]
        daemon.wait_ready()
        assert served(daemon) == version
    report = robot.finish(signal.SIGTERM)

    assert (report["wrong"], report["failed"], report["attachments"]) == ([], 0, 1)
    assert sum(report["answers"].values()) == report["asked"]
    wait_until("one engine is left", lambda: engines_of(daemon.pid) == [daemon.engine_pid])
    assert all(f"failpoint {spec.partition('=')[0]} reached" in daemon.log for spec in fatal)


@pytest.mark.long
def test_the_old_model_is_back_at_once_if_its_engine_dies_while_a_new_one_loads(
    start_daemon: Start, gate: Gate, tmp_path: Path
) -> None:
    old, new = gain_package(tmp_path, 2), gain_package(tmp_path, 3, loads_behind=str(gate.path))
    daemon = start_daemon(old)
    with daemon.client() as client, ThreadPoolExecutor(1) as pool:
        changing = pool.submit(update, daemon, new)
        gate.wait_entered()
        engine = daemon.engine_pid
        os.kill(engine, signal.SIGKILL)
        wait_until("it is gone", lambda: not is_running(engine))

        # The new model is not there yet, and nobody waits for it.
        assert client.infer(_X, timeout=60)["k"] == 2
        assert not changing.done()
        gate.open()
        assert changing.result()["changed"]
        assert client.infer(_X)["k"] == 3
    wait_until("the engine that was killed has one successor", lambda: len(engines_of(daemon.pid)) == 2)
    assert daemon.status()["engine"]["restarts"] == 1
