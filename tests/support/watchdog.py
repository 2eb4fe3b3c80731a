"""Ends what might hang: every child process of the tests is known here and killed when a test takes too long."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_ENDING = Path(__file__).with_name("ending_with_its_parent.py")

_children: set[subprocess.Popen[Any]] = set()
_lock = threading.Lock()


def ending_with_us(command: Sequence[str], number: int = signal.SIGKILL) -> list[str]:
    """`command` as a process that gets this signal when ours dies, even by SIGKILL (the thread that starts it, exactly)."""
    return [sys.executable, "-IS", str(_ENDING), str(int(number)), str(os.getpid()), *command]


def watch(process: subprocess.Popen[Any]) -> None:
    """`process` leads a session of its own; from now on the watchdog kills it, with what it started."""
    with _lock:
        _children.add(process)


def reap(process: subprocess.Popen[Any]) -> None:
    """Kill `process` and its session unless they have ended, and forget it. May be called twice."""
    with _lock:
        _children.discard(process)
    _kill_session(process)
    process.wait()


def _kill_session(process: subprocess.Popen[Any]) -> None:
    # Once it was waited for its number may be another's; as long as no process has it, only what it started is called so.
    if process.returncode is None or not Path(f"/proc/{process.pid}").exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def reap_all() -> None:
    with _lock:
        processes = list(_children)
    for process in processes:
        reap(process)


class TestTookTooLong(Exception):
    """Raised in the test itself."""

    __test__ = False


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TestTookTooLong in the main thread, and kill all children, when the block takes longer."""

    def bite(number: int, frame: object) -> None:
        for process in list(_children):  # no lock: this may have interrupted its holder
            _kill_session(process)
        raise TestTookTooLong(f"more than {seconds:g} s: its processes were killed")

    before = signal.signal(signal.SIGALRM, bite)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
