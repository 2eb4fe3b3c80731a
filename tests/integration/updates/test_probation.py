"""A new model whose first requests go wrong is rolled back by itself, and it is said everywhere; a good one stays."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shmserve.client import InferenceFailed, ShmClient
from shmserve.package_files import content_version
from tests.support.admin_command import admin, engines_of, refused, rollback, served, update
from tests.support.daemon_process import Daemon, wait_until
from tests.support.gain_packages import gain_package, gains
from tests.support.robot_process import Robot

_X = {"x": np.arange(3), "robot": "r"}
_REQUESTS = 40


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    package = gain_package(tmp_path_factory.mktemp("packages"), 2)
    config = f"probation_requests = {_REQUESTS}\nprobation_failures = 0.4\n"
    daemon = Daemon(package, config=config)
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[ShmClient]:
    with daemon.client() as client:
        yield client


def _check_rolled_back(daemon: Daemon, bad: Path, good: str, why: str) -> None:
    """Status, log and the list of versions say so; a rollback does not lead to the bad one."""
    version = content_version(bad)
    said = wait_until("it is rolled back", lambda: daemon.status()["rolled_back"])
    assert re.fullmatch(f"version {version} was rolled back to {good}: {why}", said)
    assert said in daemon.log
    assert said in " ".join(admin(daemon, "status").stdout.split())
    daemon.wait_ready()
    assert served(daemon) == good

    def known() -> bool:
        (kept,) = [kept for kept in daemon.admin("Versions")["versions"] if kept["version"] == version]
        return bool(re.fullmatch(why, kept["rolled_back"] or "")) and not kept["current"] and not kept["previous"]

    wait_until("it is known of the version", known)
    assert "rolled back" in admin(daemon, "versions").stdout
    with refused("no_previous", version, "shmserve-admin versions shows why"):
        rollback(daemon)
    wait_until("what is no good is not kept warm", lambda: engines_of(daemon.pid) == [daemon.engine_pid])


@pytest.mark.fault("T80")
def test_a_model_that_crashes_on_its_third_request_is_rolled_back(
    daemon: Daemon, start_robot: Callable[..., Robot], tmp_path: Path
) -> None:
    good, bad = served(daemon), gain_package(tmp_path, 3, dies_at=3)
    robot = start_robot("gain_load", daemon, 1, gains(gain_package(tmp_path, 2), bad), 0.001)
    assert robot.says() == "busy"
    before = engines_of(daemon.pid)

    assert update(daemon, bad)["changed"]

    _check_rolled_back(daemon, bad, good, "its engine died on probation")
    # The engine of before was warm still; the request that killed the new one was answered by it.
    assert engines_of(daemon.pid) == before
    report = robot.finish(signal.SIGTERM)
    assert (report["wrong"], report["failed"], report["answers"]["3"]) == ([], 0, 2)
    assert sum(report["answers"].values()) == report["asked"]


def test_a_model_that_fails_too_often_is_rolled_back(daemon: Daemon, client: ShmClient, tmp_path: Path) -> None:
    good, bad = served(daemon), gain_package(tmp_path, 4, fails_of_ten=7)
    assert update(daemon, bad)["changed"]
    assert daemon.status()["rolled_back"] is None

    failed = 0
    version = None
    while version != good:
        try:
            version = client.request(_X).model_version
        except InferenceFailed:
            failed += 1

    _check_rolled_back(daemon, bad, good, r"\d+ of its first \d+ requests failed")
    # Not at the first failures, when there is no share to speak of yet.
    assert failed >= 5


def test_a_model_that_fails_now_and_then_stays(daemon: Daemon, client: ShmClient, tmp_path: Path) -> None:
    package = gain_package(tmp_path, 5, fails_of_ten=2)
    before = served(daemon)
    assert update(daemon, package)["changed"]
    failed = 0

    for _ in range(2 * _REQUESTS):
        time.sleep(0.005)  # the daemon looks every 20 ms, and is to see many shares
        try:
            assert client.infer(_X)["k"] == 5
        except InferenceFailed:
            failed += 1

    assert failed == 2 * _REQUESTS * 2 // 10
    assert (served(daemon), daemon.status()["rolled_back"]) == (content_version(package), None)
    assert rollback(daemon)["version"] == before


@pytest.mark.long
def test_after_probation_a_crash_is_a_restart_and_no_reason_to_go_back(
    daemon: Daemon, client: ShmClient, tmp_path: Path
) -> None:
    package = gain_package(tmp_path, 6, dies_at=_REQUESTS + 10)
    before = served(daemon)
    assert update(daemon, package)["changed"]

    for number in range(_REQUESTS + 20):
        assert client.infer(_X, timeout=60)["k"] == 6, number

    daemon.wait_ready()
    assert (served(daemon), daemon.status()["rolled_back"]) == (content_version(package), None)
    assert rollback(daemon)["version"] == before


@pytest.mark.long
def test_a_rollback_to_a_model_that_crashes_does_not_lead_back(
    daemon: Daemon, client: ShmClient, tmp_path: Path
) -> None:
    """The operator has left the other version for a reason: its successor by itself would be a surprise."""
    frail, other = gain_package(tmp_path, 7, dies_at=15), gain_package(tmp_path, 8)
    assert update(daemon, frail)["changed"]
    for _ in range(5):
        client.infer(_X)
    assert update(daemon, other)["changed"]
    assert rollback(daemon)["version"] == content_version(frail)

    for _ in range(12):
        assert client.infer(_X, timeout=60)["k"] == 7

    daemon.wait_ready()
    assert (served(daemon), daemon.status()["rolled_back"]) == (content_version(frail), None)
