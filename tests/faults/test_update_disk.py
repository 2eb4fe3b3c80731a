"""A state directory without room: the update is refused, what serves goes on, and what a restart serves is the same."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from shmserve.client import ServiceUnavailable
from shmserve.package_files import content_version
from tests.support.admin_command import admin, engines_of, refused, served, staged, update
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gain_packages import gain_package, gains
from tests.support.robot_process import Robot
from tests.support.tiny_disk import tiny_disk

pytestmark = pytest.mark.long


@pytest.fixture
def full_daemon(make_daemon: Callable[..., Daemon], tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with a state directory of 4 MiB."""
    daemon = make_daemon(gain_package(tmp_path, 2))
    daemon.state_dir.mkdir()
    with tiny_disk(daemon.state_dir):
        yield daemon.start()
        daemon.stop()


def test_a_package_that_does_not_fit_is_refused(full_daemon: Daemon, tmp_path: Path) -> None:
    daemon, before = full_daemon, served(full_daemon)
    large = gain_package(tmp_path, 3)
    (large / "weights.bin").write_bytes(os.urandom(5 << 20))

    with refused("store", "'weights.bin' has 5242880 bytes", "make room, or keep fewer versions (keep_versions)"):
        update(daemon, large)

    assert (served(daemon), staged(daemon), len(daemon.admin("Versions")["versions"])) == (before, [], 1)
    assert admin(daemon, "update-model", large).returncode == 1
    (large / "weights.bin").unlink()
    assert update(daemon, large)["changed"]


@pytest.mark.fault("T68")
def test_a_disk_without_a_byte_left_takes_no_update_and_the_service_goes_on(
    full_daemon: Daemon, tmp_path: Path
) -> None:
    daemon, before = full_daemon, served(full_daemon)
    ballast = daemon.state_dir / "ballast"
    with open(ballast, "wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 16))
            file.flush()

    with refused("store", "make room"):
        update(daemon, gain_package(tmp_path, 3))
    assert served(daemon) == before

    # Not even a restart needs room.
    daemon.stop()
    daemon.start()
    assert served(daemon) == before


@pytest.mark.long
def test_an_update_that_cannot_be_made_current_is_rolled_back(
    make_daemon: Callable[..., Daemon], start_robot: Callable[..., Robot], tmp_path: Path
) -> None:
    """What a restart would not serve does not serve on."""
    packages = [gain_package(tmp_path, k) for k in (2, 3)]
    daemon = make_daemon(packages[0])
    daemon.environment = {"SHMSERVE_FAILPOINTS": "current.before_sync=raise:ENOSPC@2"}
    daemon.start()
    robot = start_robot("gain_load", daemon, 1, gains(*packages), 0.001)
    assert robot.says() == "busy"
    before, engine = served(daemon), daemon.engine_pid

    with refused("store", "No space left on device", "make room"):
        update(daemon, packages[1])

    assert (served(daemon), daemon.engine_pid, daemon.status()["state"]) == (before, engine, "ready")
    wait_until("the other engine is gone", lambda: engines_of(daemon.pid) == [engine])
    assert update(daemon, packages[1])["changed"]  # the disk has room again
    report = robot.finish(signal.SIGTERM)
    assert (report["wrong"], report["failed"], report["attachments"]) == ([], 0, 1)
    assert sum(report["answers"].values()) == report["asked"]
    daemon.stop()
    daemon.start()
    assert served(daemon) == content_version(packages[1])


@pytest.mark.long
def test_a_disk_that_hangs_delays_only_the_update(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """Robots, newcomers among them, and operators are served while the state directory does not answer."""
    packages = [gain_package(tmp_path, k) for k in (2, 3)]
    daemon = make_daemon(packages[0])
    for step, begins in (("current.before_sync", False), ("store.examined@2", True)):
        # The first hangs as soon as the first model serves, the second with the update's package.
        name, _, nth = step.partition("@")
        daemon.environment = {"SHMSERVE_FAILPOINTS": f"{name}=sleep:100" + (f"@{nth}" if nth else "")}
        daemon.start()
        with ThreadPoolExecutor(1) as pool:
            changing = pool.submit(update, daemon, packages[1])
            wait_until("it hangs", lambda name=name: f"failpoint {name} reached" in daemon.log)

            with daemon.client() as client:
                assert client.infer({"x": np.arange(3), "robot": "r"})["k"] == 2
                assert client.describe()["version"] == content_version(packages[0])
            assert daemon.status()["state"] in ("ready", "updating")
            assert daemon.admin("Versions")["versions"]
            if begins:
                with refused("busy"):
                    update(daemon, packages[1])

            assert not changing.done()
            daemon.kill9()
            with pytest.raises(ServiceUnavailable):
                changing.result()
        shutil.rmtree(daemon.state_dir)
