"""State of a process as the kernel shows it, for the message of a failure that names the process."""

from __future__ import annotations

import select
import time
from pathlib import Path

#: Lines of /proc/PID/status with the reason why a killed process has not ended: its state, its pending signals.
_STATUS = ("State", "Threads", "SigPnd", "ShdPnd", "SigBlk")


def describe(pid: int) -> str:
    """Return the process's state by /proc, in one line."""
    folder = Path(f"/proc/{pid}")
    try:
        stat = (folder / "stat").read_text().strip()
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        try:
            place = (folder / "wchan").read_text() or "0"
        except PermissionError:
            place = "not readable"
    except (FileNotFoundError, ProcessLookupError):
        return f"process {pid} no longer exists"
    lines = "; ".join(f"{name} {' '.join(status[name].split())}" for name in _STATUS if name in status)
    return f"process {pid}: {lines}; waits in {place}; stat {stat}"


def wait_dead(pid: int, pidfd: int, limit_s: float) -> None:
    """Wait until a killed process is dead; raise AssertionError with its state if it is not.

    A process in an uninterruptible wait keeps its sockets and its memory whatever signals it was sent.
    """
    until_s = time.monotonic() + limit_s
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while not poll.poll(50):
        assert time.monotonic() < until_s, f"SIGKILL has not ended it within {limit_s:g} s: {describe(pid)}"
