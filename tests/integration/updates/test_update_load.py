"""Robots that never stop asking, while two policies y = k * x replace each other: nothing is lost, nothing mixed."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import watchdog
from tests.support.admin_command import admin_json, update
from tests.support.daemon_process import Daemon
from tests.support.gain_packages import gain_package, gains
from tests.support.robot_process import Robot
from tests.support.update_scale import THOROUGH, UPDATES

pytestmark = pytest.mark.sealed_too

_ROBOTS = 4
_UPDATE_LIMIT_S = 4.0


@pytest.mark.fault("T81")
def test_alternating_updates_under_four_robots_lose_nothing_and_mix_nothing(
    start_daemon: Callable[..., Daemon],
    start_robot: Callable[..., Robot],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packages = [gain_package(tmp_path, k) for k in (2, 3)]
    daemon = start_daemon(packages[0])
    with watchdog.limit(100 + UPDATES * _UPDATE_LIMIT_S):
        robots = [start_robot("gain_load", daemon, number, gains(*packages)) for number in range(_ROBOTS)]
        assert [robot.says() for robot in robots] == ["busy"] * _ROBOTS

        results = [update(daemon, packages[number % 2]) for number in range(1, UPDATES + 1)]
        reports = [robot.finish(signal.SIGTERM) for robot in robots]

        assert [result["changed"] for result in results] == [True] * UPDATES
        # Only the first one starts an engine: from then on the other policy's is warm.
        assert ["start" in result["steps"] for result in results] == [True] + [False] * (UPDATES - 1)
        for report in reports:
            exact = {"wrong": [], "failed": 0, "late": 0, "attachments": 1}
            assert {key: report[key] for key in exact} == exact
            assert sum(report["answers"].values()) == report["asked"]
        asked = sum(report["asked"] for report in reports)
        requests = daemon.status()["requests"]
        counted = {name: count for name, count in requests.items() if count and name != "batches"}
        assert counted == {"served": asked}
        by_k = {k: sum(report["answers"].get(k, 0) for report in reports) for k in ("2", "3")}
        assert all(by_k.values())

        def served_by_k() -> dict[str, int]:
            return {kept["source"].removeprefix("gain-"): kept["served"] for kept in admin_json(daemon, "versions")}

        assert served_by_k() == by_k
        if THOROUGH:
            longest_ms = max(report["longest_ms"] for report in reports)
            with capsys.disabled():
                print(
                    f"\n{UPDATES:,} updates, {asked:,} requests, {by_k} by k; longest pause of a robot {longest_ms} ms"
                )
        daemon.stop()
        daemon.start()
        # What each version has answered in its life is no less known for a restart.
        assert served_by_k() == by_k
