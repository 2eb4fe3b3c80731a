"""Listens to every client's request bell at once, where each client has one of its own (transport `sealed`)."""

from __future__ import annotations

import contextlib
import os
import select

_ALL_TOKENS = 65536


class PipeBells:
    """The engine's `Listener` over the pipes of all channels; each pipe's descriptor stays its channel's."""

    def __init__(self, control: int) -> None:
        """`control` is the supervisor's socket: a message ends a wait, but is no token."""
        self._poll = select.epoll()
        self._poll.register(control, select.EPOLLIN)
        self._control = control
        self._ready: list[int] = []

    def watch(self, pipe: int) -> None:
        """Listen to this client, too."""
        self._poll.register(pipe, select.EPOLLIN)

    def forget(self, pipe: int) -> None:
        """Before the pipe is closed; one that is not watched is no error."""
        with contextlib.suppress(OSError):
            self._poll.unregister(pipe)
        if pipe in self._ready:
            self._ready.remove(pipe)

    def tokens(self) -> int:
        if not self._ready:
            self._look(0)
        return len(self._ready)

    def try_take(self) -> bool:
        if not self.tokens():
            return False
        pipe = self._ready.pop()
        try:
            if os.read(pipe, _ALL_TOKENS):
                return True
        except OSError:
            return False
        # The client closed its end and lives: it would be ready for ever. Its requests are found by looking.
        self.forget(pipe)
        return False

    def wait(self, timeout_ns: int) -> bool:
        if not self._ready:
            self._look(timeout_ns / 1e9)
        return self.try_take()

    def _look(self, timeout_s: float) -> None:
        self._ready = [pipe for pipe, _ in self._poll.poll(timeout_s) if pipe != self._control]

    def close(self) -> None:
        self._poll.close()
