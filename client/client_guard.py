"""Guard of one client: its lock, and whether it was closed or forked.

The pipeline makes it and hands it to its parts: a client has one lock, and no part of it waits while holding that lock.
A signal handler, a finalizer or an object of the observation may run in the middle of a call of the same thread. The
lock is reentrant, so that such code can close the client; any other nested call is rejected with ReentrantCall.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from shmserve.errors import ClientClosed, ClientForked, InvalidArgument, ReentrantCall


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
            "a client, and what is out or on loan from it, stays in its process: make a ShmClient in each"
        )
