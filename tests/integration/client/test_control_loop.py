"""A 50 Hz control loop whose daemon is restarted under it: it goes on, and only the beats of the outage cost anything."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.daemon_process import Daemon
from tests.support.robot_process import Robot

pytestmark = pytest.mark.sealed_too


@pytest.mark.long
@pytest.mark.parametrize(("end", "max_retries"), [("stop", 0), pytest.param("kill9", 1000, marks=pytest.mark.long)])
def test_a_restart_costs_a_loop_only_the_requests_of_the_outage(
    make_daemon: Callable[..., Daemon], start_robot: Callable[..., Robot], end: str, max_retries: int
) -> None:
    daemon = make_daemon("tagged").start()
    robot = start_robot("control_loop", daemon, max_retries)
    assert robot.says() == "goes on"

    getattr(daemon, end)()
    daemon.start()
    assert robot.says() == "goes on"  # said once for each time without errors
    found: dict[str, Any] = robot.finish(signal.SIGTERM)

    assert found["wrong"] == []
    beats = found["beats"]
    # SlotsExhausted: those before it were sent while the daemon ended, and wait for nobody.
    failed = {"ServiceUnavailable", "ServiceRestarted", "ServiceStopping", "RequestTimeout", "SlotsExhausted"}
    assert set(beats) <= {"answered", "late"} | failed, found["texts"]
    # One outage, and nothing outside of it cost a beat.
    assert [missed for missed, _ in itertools.groupby(beats, lambda beat: beat in failed)] == [False, True, False]
    assert robot.errors == ""
