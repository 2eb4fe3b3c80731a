"""Wait list of threads: park until another thread of the same client ends its work.

As trio's and WebKit's parking lots, with two differences: a waking thread unparks all of them, because each waits for
something else and checks for itself, and a parked thread wakes up after a bounded time in any case.
"""

from __future__ import annotations

import contextlib
import threading
import time

#: The awaited work may have ended just before a thread parked: the thread checks again after this time.
_LONGEST_S = 0.05


class ParkingLot:
    """The parked threads of one client."""

    def __init__(self) -> None:
        #: One lock for each parked thread, acquired by it: releasing the lock unparks the thread. Not a condition: Ctrl-C
        # during Condition.wait raises another error.
        self.parked: list[threading.Lock] = []

    def park(self, until_ns: int) -> None:
        """Wait until unparked, `until_ns` or a bounded time; the caller checks what it waits for."""
        alarm = threading.Lock()
        alarm.acquire()
        self.parked.append(alarm)
        if not alarm.acquire(timeout=max(0.0, min((until_ns - time.monotonic_ns()) / 1e9, _LONGEST_S))):
            with contextlib.suppress(ValueError):  # unparked at the last moment
                self.parked.remove(alarm)

    def unpark_all(self) -> None:
        """Wake every parked thread."""
        while self.parked:
            with contextlib.suppress(IndexError):  # another thread unparks them as well
                self.parked.pop().release()
