"""Guard of one client: its lock, whether it was closed or forked, and the wait list of its threads.

The pipeline makes them and hands them to its parts: a client has one lock, and no part of it waits while holding that lock.
A thread that has to wait for another one parks.
A signal handler, a finalizer or an object of the observation may run in the middle of a call of the same thread. The
lock is reentrant, so that such code can close the client; any other nested call is rejected with ReentrantCall.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from shmserve.errors import ClientClosed, ClientForked, InvalidArgument, ReentrantCall

#: The awaited work may have ended just before a thread parked: the thread checks again after this time.
_LONGEST_S = 0.05


class ClientGuard:
    """Lock and life of one client."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False
        self.forked = False
        self._renew_lock()

    def _renew_lock(self) -> None:
        self.lock = threading.RLock()
        #: Whether this thread holds the lock: then it has interrupted its own call of the client.
        self.is_inside: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]

    def close(self) -> None:
        """Reject every later call."""
        self.closed = True

    def fork(self) -> None:
        """Disable this copy, in a forked child; the lock's holder at the moment of the fork cannot release it here."""
        self.forked = True
        self._renew_lock()

    def check_usable(self) -> None:
        """Raise ClientForked or ClientClosed for a client that is."""
        self.check_owner()
        if self.closed:
            raise self.closed_error()

    def check_owner(self) -> None:
        """Raise ClientForked in a forked child, whose copy must touch nothing that it shares with its parent."""
        if self.forked:
            raise ClientForked("this client belongs to the parent process: make a new ShmClient after the fork")

    def check_not_inside(self) -> None:
        """Raise ReentrantCall where this thread was interrupted inside the client."""
        if self.is_inside():
            raise self.reentrant_error()

    def reentrant_error(self) -> ReentrantCall:
        """Return the error for a call from a signal handler, a finalizer or an object of the observation."""
        return ReentrantCall(
            f"this thread is inside a call of its client of {self.name!r}, which a signal handler, a finalizer or an "
            "object of the observation has interrupted: only close() and cancel() may be called there; use another "
            "client, or note what is to be done and do it after the call"
        )

    def closed_error(self) -> ClientClosed:
        """Return the error for a client that was closed."""
        return ClientClosed(f"this client of {self.name!r} was closed: make a new one")

    def pickle_error(self) -> InvalidArgument:
        """Return the error for an attempt to copy a client, its requests or its loans into another process."""
        return InvalidArgument(
            "a client, its requests in flight and its loans stay in their process: make a ShmClient in each"
        )


class ParkingLot:
    """The parked threads of one client: each waits until another thread of the same client ends its work.

    As trio's and WebKit's parking lots, with two differences: a waking thread unparks all of them, because each waits for
    something else and checks for itself, and a parked thread wakes up after a bounded time in any case.
    """

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
