"""Threads that wait for another thread of the same client to end what it is doing."""

from __future__ import annotations

import contextlib
import threading
import time

#: What a thread waits for may have ended just before it began to: it looks again after so long.
_LONGEST_S = 0.05


class Followers:
    """Those that wait; whoever ends something wakes them all, and each looks for itself."""

    def __init__(self) -> None:
        # One for each thread, and held by it: to release it is to wake the thread. A lock rather than a condition: a
        # condition that Ctrl-C interrupts raises something else.
        self._alarms: list[threading.Lock] = []

    def follow(self, until_ns: int) -> None:
        """Wait until woken, or for a bounded while; the caller looks again."""
        alarm = threading.Lock()
        alarm.acquire()
        self._alarms.append(alarm)
        if not alarm.acquire(timeout=max(0.0, min((until_ns - time.monotonic_ns()) / 1e9, _LONGEST_S))):
            with contextlib.suppress(ValueError):  # woken at the last moment
                self._alarms.remove(alarm)

    def wake(self) -> None:
        while self._alarms:
            with contextlib.suppress(IndexError):  # another thread wakes them, too
                self._alarms.pop().release()
