"""Decision whether requests go to the remote model: a link opens when it does not answer, and closes after good probes.

Two threads use it: the engine's, which asks, and the one that probes while the link is open.
"""

from __future__ import annotations

import threading


class LinkBreaker:
    """A link is closed while requests pass. No request of a robot is ever a probe."""

    def __init__(self, *, open_after: int, recover_after: int) -> None:
        """Open after `open_after` bad answers in a row, or a lost connection; close after `recover_after` good probes."""
        self._open_after = open_after
        self._recover_after = recover_after
        self._lock = threading.Lock()
        self._in_a_row = 0
        #: Why the link is open; None while it is closed.
        self.reason: str | None = None
        #: Set while the link is open.
        self.opened = threading.Event()

    @property
    def is_open(self) -> bool:
        return self.reason is not None

    def answered(self) -> None:
        """Note an answer of the remote within its budget."""
        if self._in_a_row:
            with self._lock:
                if self.reason is None:
                    self._in_a_row = 0

    def missed(self, reason: str) -> None:
        """Note a late or busy answer."""
        with self._lock:
            if self.reason is None:
                self._in_a_row += 1
                if self._in_a_row >= self._open_after:
                    self._open(reason)

    def open(self, reason: str) -> None:
        """Open the link at once; an open one takes the newer reason."""
        with self._lock:
            self._open(reason)

    def probed(self, good: bool) -> bool:
        """Note a probe; return whether it closed the link."""
        with self._lock:
            if self.reason is None:
                return False
            self._in_a_row = self._in_a_row + 1 if good else 0
            if self._in_a_row < self._recover_after:
                return False
            self.reason, self._in_a_row = None, 0
            self.opened.clear()
            return True

    def _open(self, reason: str) -> None:
        if self.reason is None:
            self._in_a_row = 0
        self.reason = reason
        self.opened.set()
