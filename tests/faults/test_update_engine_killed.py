"""kill -9 of the serving engine or of the new one at every step that the supervisor takes in an update."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmserve.package_files import content_version
from shmserve.varlink import VarlinkError
from tests.support import watchdog
from tests.support.admin_command import engines_of, served, staged, update
from tests.support.daemon_process import Daemon, is_running, wait_until
from tests.support.gain_packages import gain_package, gains
from tests.support.robot_process import Robot
from tests.support.stopping_daemon import Stops
from tests.support.update_scale import THOROUGH, some_of
from tests.support.update_steps import AFTER, BEFORE

STEPS = [step.partition("@")[0] for step in BEFORE + AFTER]
#: From here on there is a new engine to kill.
WARM = STEPS.index("update.warm")
#: Until here the new engine's death refuses the update; from then on it is on probation.
PAUSED = STEPS.index("swap.paused")
CASES = [("serving", step) for step in STEPS] + [("new", step) for step in STEPS[WARM:]]


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    with watchdog.limit(900 if THOROUGH else 150):
        yield


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(f"engine {pid} has ended", lambda: not is_running(pid))


def _current(daemon: Daemon) -> list[str]:
    """What a restart would serve."""
    return [kept["version"] for kept in daemon.admin("Versions")["versions"] if kept["current"]]


@pytest.mark.long
def test_an_engine_killed_while_the_supervisor_is_at_any_step_costs_no_request(
    make_daemon: Callable[..., Daemon], start_robot: Callable[..., Robot], tmp_path: Path
) -> None:
    """The serving one does not keep the new one from its turn; the new one's death leads back to the old model."""
    cases = some_of(CASES, 12)
    packages = [gain_package(tmp_path, k) for k in range(2, len(cases) + 3)]
    good = content_version(packages[0])
    daemon = make_daemon(packages[0])
    with Stops(daemon, STEPS) as stops:
        daemon.start()
        robot = start_robot("gain_load", daemon, 1, gains(*packages), 0.002)
        assert robot.says() == "busy"
        for (victim, step), package in zip(cases, packages[1:], strict=True):
            serving, others = daemon.engine_pid, set(engines_of(daemon.pid))

            def harm(victim: str = victim, serving: int = serving, others: set[int] = others) -> None:
                _kill(serving if victim == "serving" else (set(engines_of(daemon.pid)) - others).pop())

            stops.at(step, harm)
            try:
                result = update(daemon, package)
            except VarlinkError as refusal:
                assert victim == "new" and STEPS.index(step) <= PAUSED, step
                assert "died" in refusal.parameters["message"]
            else:
                assert result["changed"] and (victim == "serving" or STEPS.index(step) > PAUSED), step

            assert stops.acted, step
            if victim == "serving":
                good = content_version(package)
            wait_until(f"{step}: a restart serves {good}", lambda good=good: _current(daemon) == [good])
            daemon.wait_ready()
            wait_until(f"{step}: it serves", lambda good=good: served(daemon) == good)
            bad = content_version(package) if victim == "new" and STEPS.index(step) > PAUSED else "None"
            assert bad in str(daemon.status()["rolled_back"]), step
            wait_until("nothing is on its way", lambda: not staged(daemon))
            wait_until(f"{step}: at most two engines", lambda: len(engines_of(daemon.pid)) <= 2)
        report = robot.finish(signal.SIGTERM)

    assert (report["wrong"], report["failed"], report["attachments"]) == ([], 0, 1)
    assert sum(report["answers"].values()) == report["asked"]
    daemon.kill9()
    daemon.environment = {}
    daemon.start()
    assert served(daemon) == good
