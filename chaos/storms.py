"""Storm of signals to every process, a thousand per second."""

from __future__ import annotations

import os
import signal
import time

from chaos.service import Service, wait_served
from chaos.tally import Word
from shmserve.daemon.ipc.control import WAKE_SIGNAL

#: Signals that a daemon may get by accident, and from its terminal, children and debugger.
_STRAY = (signal.SIGCHLD, signal.SIGCONT, signal.SIGWINCH, signal.SIGURG)


def signal_storm(service: Service, seconds: float) -> str:
    """Send signals to all processes: robots have a handler, and the engine also gets the signal that wakes it."""
    robots = service.busy_robots(3)
    supervisor, engine = service.daemon.pid, service.daemon.engine_pid
    before = [robot.tally[Word.RESULTS] for robot in robots]
    until_s = time.monotonic() + seconds
    sent = 0
    while time.monotonic() < until_s:
        for robot in robots:
            robot.send(signal.SIGUSR1)
        os.kill(supervisor, service.random.choice(_STRAY))
        os.kill(engine, service.random.choice((*_STRAY, WAKE_SIGNAL)))
        sent += len(robots) + 2
        time.sleep(0.001)
    served = sum(robot.tally[Word.RESULTS] for robot in robots) - sum(before)
    assert served, "no robot was served meanwhile"
    assert all(robot.tally[Word.SIGNALS] for robot in robots)
    wait_served(robots, 5)
    assert (service.daemon.pid, service.daemon.engine_pid) == (supervisor, engine), "the service did not survive"
    handled = sum(robot.tally[Word.SIGNALS] for robot in robots)
    return f"{sent:,} signals in {seconds:g} s, {handled:,} of them to handlers of robots that got {served:,} results meanwhile"
