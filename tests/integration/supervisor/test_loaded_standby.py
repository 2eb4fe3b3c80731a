"""standby = "loaded": a second engine of the served version takes over at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.admin_command import engines_of, update
from tests.support.daemon_process import NORMAL_PRIORITY, Daemon, hurry, is_running, wait_until
from tests.support.gain_packages import gain_package

Start = Callable[..., Daemon]

X = {"x": np.arange(3), "robot": "r"}
CONFIG = 'standby = "loaded"\nstandby_s = 0\nprobation_requests = 0\n'


def wait_standby(daemon: Daemon, state: str = "ready") -> None:
    def standby() -> Any:
        engine = daemon.status()["engine"]
        for pid in engines_of(daemon.pid):
            hurry(pid)
        return engine is not None and engine.get("standby", {}).get("state") == state

    wait_until(f"the second engine is {state}", standby, 60.0)


def second_engine(daemon: Daemon) -> int:
    [pid] = {*engines_of(daemon.pid)} - {daemon.engine_pid}
    return pid


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The daemon of several tests, with any model and both engines."""
    daemon = Daemon(gain_package(tmp_path_factory.mktemp("packages"), 2), config=CONFIG)
    daemon.starter = [*NORMAL_PRIORITY]
    with daemon:
        yield daemon


@pytest.mark.sealed_too
def test_the_second_engine_takes_over_when_the_serving_one_is_killed_and_is_replaced(daemon: Daemon) -> None:
    with daemon.client() as client:
        before = client.infer(X)["y"]
        wait_standby(daemon)
        second = second_engine(daemon)
        warmed = daemon.log.count("state warming")

        os.kill(daemon.engine_pid, signal.SIGKILL)

        assert np.array_equal(client.infer(X)["y"], before) and daemon.engine_pid == second
        wait_standby(daemon)
        assert second_engine(daemon) != second
        assert daemon.log.count("state warming") == warmed, "nothing was loaded while robots waited"


def test_an_update_replaces_the_second_engine_too(daemon: Daemon, tmp_path: Path) -> None:
    wait_standby(daemon)
    old = {*engines_of(daemon.pid)}

    update(daemon, gain_package(tmp_path, 3))

    wait_until("the engines of the old version are gone", lambda: not any(map(is_running, old)))
    wait_standby(daemon)
    with daemon.client() as client:
        os.kill(daemon.engine_pid, signal.SIGKILL)
        assert client.infer(X)["y"][2] == 6


def test_one_that_dies_is_replaced_and_one_that_is_not_wanted_any_more_ends(daemon: Daemon) -> None:
    wait_standby(daemon)
    second = second_engine(daemon)

    os.kill(second, signal.SIGKILL)

    both = {second, daemon.engine_pid}
    wait_until("another one is started", lambda: {*engines_of(daemon.pid)} - both)
    wait_standby(daemon)
    third = second_engine(daemon)
    (daemon.folder / "config.toml").write_text("standby_s = 0\n")
    daemon.admin("Reload")
    try:
        wait_until("it ends", lambda: not is_running(third))
        assert "standby" not in daemon.status()["engine"]
    finally:
        (daemon.folder / "config.toml").write_text(CONFIG)
        daemon.admin("Reload")


def test_a_model_that_does_not_load_twice_is_reported_once(make_daemon: Start, tmp_path: Path) -> None:
    package = gain_package(tmp_path, 2)
    policy = package / "policy.py"
    once = f"""
import os
marker = {str(tmp_path / "loaded")!r}
if os.path.exists(marker):
    raise RuntimeError("the camera is in use")
open(marker, "w").close()
"""
    policy.write_text(policy.read_text() + once)
    daemon = make_daemon(package, config=CONFIG)
    daemon.starter = [*NORMAL_PRIORITY]
    daemon.start()

    wait_standby(daemon, "failed")

    assert "the camera is in use" in daemon.status()["engine"]["standby"]["reason"]
    assert daemon.status()["state"] == "ready"
    assert daemon.log.count("no second engine is kept") == 1
