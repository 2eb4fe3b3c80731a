"""Event hook for a change of the model version that replies come from."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

#: Called with the versions before and after, as `Reply.model_version`.
OnModelChange = Callable[[str, str], object]


class ModelWatch:
    """Hears of every reply; called by several threads."""

    def __init__(self, version: int | None) -> None:
        """`version`: the one known so far; None: the first reply's version is not a change."""
        self._version = version
        self._callbacks: list[OnModelChange] = []
        self.renew_lock()

    def renew_lock(self) -> None:
        """At first, and in a forked child, where its holder may not be."""
        # A finalizer or a signal handler may ask and get a reply while its own thread is in here.
        self._lock = threading.RLock()

    def add(self, callback: OnModelChange) -> None:
        with self._lock:
            self._callbacks.append(callback)

    def observe(self, version: int) -> None:
        """Note a reply of this version; call the callbacks if it is the first of it."""
        if version == self._version:
            return
        with self._lock:
            before, self._version = self._version, version
            callbacks = tuple(self._callbacks)
        if before is None or before == version:  # known at last; or another thread saw it first
            return
        for callback in callbacks:
            try:
                callback(f"{before:016x}", f"{version:016x}")
            except Exception:  # whatever it raises, the reply must not be lost with it
                log.exception("%r failed; the reply was delivered all the same", callback)
