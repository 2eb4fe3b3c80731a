"""What a daemon begins with after a restart: an update stays, what the operator changed counts, damage is told."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shmserve.package_files import content_version
from tests.support.admin_command import admin, served, update
from tests.support.daemon_process import Daemon
from tests.support.gain_packages import gain_package

_X = {"x": np.arange(3), "robot": "r"}


def _restart(daemon: Daemon) -> str:
    """The version that it begins with."""
    daemon.stop()
    daemon.start()
    return served(daemon)


def _versions(daemon: Daemon) -> Path:
    return daemon.state_dir / daemon.name / "models" / "versions"


@pytest.mark.long
def test_an_update_outlives_a_restart_and_a_changed_model_path_counts_once(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    given = gain_package(tmp_path, 2)
    updated = gain_package(tmp_path, 3)
    daemon = start_daemon(given)
    assert update(daemon, updated)["changed"]

    assert _restart(daemon) == content_version(updated)
    (given / "settings.json").write_text(json.dumps({"k": 5}))
    assert _restart(daemon) == content_version(given)


@pytest.mark.long
def test_an_update_outlives_restarts_however_often_and_without_a_model_path(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    given = gain_package(tmp_path, 2)
    updated = gain_package(tmp_path, 3)
    daemon = start_daemon(given)
    assert update(daemon, updated)["changed"]

    # More than once: a restart must not take the update for what --model-path holds.
    assert _restart(daemon) == content_version(updated)
    assert _restart(daemon) == content_version(updated)

    # New content at the same path is a new wish of the operator's; it, too, counts once.
    (given / "settings.json").write_text(json.dumps({"k": 5}))
    assert _restart(daemon) == content_version(given)
    assert update(daemon, updated)["changed"]
    assert _restart(daemon) == content_version(updated)

    # Without --model-path: what was served last. And the same path as before is no change after that.
    package, daemon.package = daemon.package, None
    assert _restart(daemon) == content_version(updated)
    daemon.package = package
    assert _restart(daemon) == content_version(updated)


@pytest.mark.long
def test_the_highest_release_is_known_after_its_version_is_gone(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    packages = [gain_package(tmp_path, k) for k in (2, 3, 4, 5)]
    daemon = start_daemon(packages[0], config="keep_versions = 3\n")
    for package in packages[1:]:
        assert update(daemon, package)["changed"]
    kept = {version["version"] for version in daemon.admin("Versions")["versions"]}
    assert kept == {content_version(package) for package in packages[1:]}

    assert _restart(daemon) == content_version(packages[3])


@pytest.mark.long
def test_a_changed_device_counts_and_an_unchanged_one_undoes_no_move(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    package = gain_package(tmp_path, 2)
    daemon = make_daemon(package).start()
    assert update(daemon, package, device="cpu:0")["changed"]
    assert daemon.status()["model"]["device"] == "cpu:0"

    _restart(daemon)
    assert daemon.status()["model"]["device"] == "cpu:0"

    daemon.environment = {"SHMSERVE_DEVICE": "cpu:0"}
    _restart(daemon)
    assert daemon.status()["model"]["device"] == "cpu:0"
    daemon.environment = {}
    _restart(daemon)
    assert daemon.status()["model"]["device"] == "cpu"


@pytest.mark.long
def test_a_damaged_version_falls_back_to_the_last_good_one_and_says_so(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    old, new = gain_package(tmp_path, 2), gain_package(tmp_path, 3)
    daemon = start_daemon(old)
    assert update(daemon, new)["changed"]
    daemon.stop()
    (policy,) = _versions(daemon).glob(f"{content_version(new)}*/policy.py")
    policy.chmod(0o600)
    policy.write_text(policy.read_text() + "# not as it was sent\n")

    daemon.start()

    assert served(daemon) == content_version(old)
    said = f"version {content_version(new)} is damaged: 'policy.py' was changed; it is not served"
    assert said in daemon.log
    assert daemon.status()["problems"] == [said]
    assert said in " ".join(admin(daemon, "status").stdout.split())
    # It is current now; sending the damaged one again repairs it.
    assert _restart(daemon) == content_version(old)
    assert update(daemon, new)["changed"]
    assert _restart(daemon) == content_version(new)
    assert daemon.status()["problems"] == []


@pytest.mark.long
def test_a_daemon_with_only_damaged_versions_reports_it_and_needs_a_model_path(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = start_daemon(gain_package(tmp_path, 2))
    daemon.stop()
    for directory in _versions(daemon).iterdir():
        if directory.is_dir():
            directory.chmod(0o700)
            (directory / "policy.py").unlink()
    package, daemon.package = daemon.package, None

    assert daemon.run_to_end() == 78
    assert "'policy.py' is missing; it is not served" in daemon.log
    assert "give --model-path DIR" in daemon.log.strip().splitlines()[-1]

    daemon.package = package
    daemon.start()
    assert package is not None and served(daemon) == content_version(package)


def test_a_daemon_that_never_served_needs_a_model_path(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.package = None

    assert daemon.run_to_end() == 78  # which systemd does not start again
    assert "no model was served before in " in daemon.log and "give --model-path DIR" in daemon.log


@pytest.mark.long
def test_counts_of_a_killed_daemon_are_those_of_its_ended_engines(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """What a living engine has counted goes with a kill -9; what was written before does not."""
    package = gain_package(tmp_path, 2)
    daemon = start_daemon(package)
    with daemon.client() as client:
        for _ in range(7):
            client.infer(_X)
    daemon.stop()
    daemon.start()
    with daemon.client() as client:
        client.infer(_X)
    assert [version["served"] for version in daemon.admin("Versions")["versions"]] == [8]
    os.kill(daemon.pid, signal.SIGKILL)
    assert daemon.wait_end() == -signal.SIGKILL

    daemon.start()

    assert [version["served"] for version in daemon.admin("Versions")["versions"]] == [7]
