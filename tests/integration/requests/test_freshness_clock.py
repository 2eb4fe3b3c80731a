"""Steps of the wall clock: an hour forwards or backwards changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.clocks import HOUR_S, OtherClock
from tests.support.daemon_process import Daemon, wait_until
from tests.support.robot_process import Robot

pytestmark = [pytest.mark.long, pytest.mark.sealed_too]


@pytest.fixture
def clock(tmp_path: Path) -> OtherClock:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to make another wall clock with")
    return OtherClock(tmp_path)


@pytest.mark.fault("T23")
@pytest.mark.parametrize(("who", "first_s"), [("client", -HOUR_S), ("daemon", HOUR_S), ("both", -HOUR_S)])
def test_a_wall_clock_that_is_off_changes_nothing(
    make_daemon: Callable[..., Daemon],
    start_robot: Callable[..., Robot],
    clock: OtherClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    who: str,
    first_s: int,
) -> None:
    clock.step(first_s)
    daemon = make_daemon("obedient")
    if who != "client":
        daemon.environment = clock.environment
    daemon.start()
    for name, value in clock.environment.items() if who != "daemon" else ():
        monkeypatch.setenv(name, value)  # for the robot; this process has been linked
    robot = start_robot("clocked", daemon, tmp_path)

    # Each line comes only when what went before it has happened; no order of them takes any certain time.
    assert abs(robot.says()["off"] - (first_s if who != "daemon" else 0)) < 60
    assert robot.says() == {"served": 200}
    assert robot.says() == "a request without a timeout worth mentioning waits"
    wait_until("the policy is inside", (tmp_path / "held.entered").exists)
    clock.step(-first_s)
    assert robot.says() == {"timed out": "RequestTimeout", "behind one that was held": True}
    assert robot.says() == {"in an event loop": "RequestTimeout"}
    assert robot.says() == {"no slot": "SlotsExhausted"}
    assert not (tmp_path / "held").exists()
    (tmp_path / "held").touch()
    assert robot.says() == {"held": True}
    assert robot.says() == {"stale": "ObservationStale", "fresh": True}
    assert robot.says() == {"served": 200}
    assert robot.says() == "done"


@pytest.mark.long
def test_a_daemon_that_is_stopped_after_a_step_of_the_clock_drains(
    make_daemon: Callable[..., Daemon], clock: OtherClock
) -> None:
    daemon = make_daemon("echo")
    daemon.environment = clock.environment
    daemon.start()
    with daemon.client() as client:
        for offset_s in (HOUR_S, -HOUR_S, 0, -HOUR_S):
            clock.step(offset_s)
            assert client.infer({"x": offset_s}) == {"x": offset_s}

    daemon.stop()


def test_the_other_clock_is_really_another(clock: OtherClock) -> None:
    program = "import json, time; print(json.dumps([time.time(), time.monotonic()]))"

    def clocks(offset_s: int) -> tuple[float, float]:
        clock.step(offset_s)
        output = subprocess.run(
            ["python3", "-c", program], env={**os.environ, **clock.environment}, check=True, capture_output=True
        ).stdout
        wall, monotonic = json.loads(output)
        return wall, monotonic

    (now, start), (behind, later) = clocks(0), clocks(-HOUR_S)

    assert behind < now - HOUR_S / 2
    assert later >= start
