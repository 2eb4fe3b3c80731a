"""Listens to every client's request bell at once, where each client has one of its own (transport `sealed`)."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Collection

from shmserve.layout import number_of

from ..channel.tenancy import Tenancy

_ALL_TOKENS = 65536
#: So many rings more than requests need, and a client is not listened to for a while. One that keeps to the protocol
#: rings once or twice for each request; an earlier engine may have left tokens of as many as the channel has slots (64).
_SPARE_RINGS = 256
_RINGS = 2
_DEAF_NS = 1_000_000_000


class _Ringer:
    """One client's pipe, and how often it rang without need."""

    __slots__ = ("allowed", "deaf_until_ns", "pipe", "tenancy", "tokens")

    def __init__(self, tenancy: Tenancy, pipe: int) -> None:
        self.tenancy = tenancy
        self.pipe = pipe
        self.tokens = 0
        #: So many tokens are allowed beside those of the requests that were seen; known when the first one comes.
        self.allowed: int | None = None
        self.deaf_until_ns = 0


class PipeBells:
    """The engine's `Bells` over the pipes of all channels; each pipe's descriptor stays its channel's.

    A pipe tells who rang, so only that channel is looked at. Who rings and rings without a request is not
    listened to for a while, and can wake the engine no more often than it serves him; what such a client does
    publish is found by looking.
    """

    tells_who = True

    def __init__(self, control: int) -> None:
        """`control` is the supervisor's socket: a message ends a wait, but is no token."""
        self._poll = select.epoll()
        self._poll.register(control, select.EPOLLIN)
        self._control = control
        self._ringers: dict[int, _Ringer] = {}
        self._deaf: list[_Ringer] = []
        self._ready: list[int] = []

    def watch(self, tenancy: Tenancy) -> None:
        pipe = tenancy.channel.request_pipe
        if pipe is not None:
            self._ringers[pipe] = _Ringer(tenancy, pipe)
            self._poll.register(pipe, select.EPOLLIN)

    def forget(self, tenancy: Tenancy) -> None:
        pipe = tenancy.channel.request_pipe
        ringer = self._ringers.pop(pipe, None) if pipe is not None else None
        if ringer is not None:
            self._ignore(ringer)
            if ringer in self._deaf:
                self._deaf.remove(ringer)

    def tokens(self) -> int:
        if not self._ready:
            self._look(0)
        return len(self._ready)

    def take(self) -> Collection[Tenancy]:
        """One read of each pipe that is ready, whatever is left in it."""
        if not self._ready:
            self._look(0)
        rang = []
        while self._ready:
            ringer = self._ringers[self._ready.pop()]
            tokens = 0
            with contextlib.suppress(OSError):
                tokens = len(os.read(ringer.pipe, _ALL_TOKENS))
                if not tokens:
                    # The client closed its end and lives: it would be ready for ever. Its requests are found by looking.
                    self._ignore(ringer)
            if tokens:
                rang.append(ringer.tenancy)
                self._count(ringer, tokens)
        return rang

    def _count(self, ringer: _Ringer, tokens: int) -> None:
        seen = _RINGS * number_of(ringer.tenancy.poller.last_seen)
        if ringer.allowed is None:
            ringer.allowed = _SPARE_RINGS - seen
        ringer.tokens += tokens
        if ringer.tokens > seen + ringer.allowed:
            ringer.tokens, ringer.allowed = 0, None
            self._ignore(ringer)
            self._deaf.append(ringer)
            ringer.deaf_until_ns = 0

    def wait(self, timeout_ns: int) -> bool:
        """The token stays for `take`."""
        if not self._ready:
            self._look(timeout_ns / 1e9)
        return bool(self._ready)

    def pardon(self, now_ns: int) -> None:
        for ringer in tuple(self._deaf):
            if not ringer.deaf_until_ns:
                ringer.deaf_until_ns = now_ns + _DEAF_NS
            elif now_ns >= ringer.deaf_until_ns:
                self._deaf.remove(ringer)
                self._poll.register(ringer.pipe, select.EPOLLIN)

    def _ignore(self, ringer: _Ringer) -> None:
        with contextlib.suppress(OSError):
            self._poll.unregister(ringer.pipe)
        if ringer.pipe in self._ready:
            self._ready.remove(ringer.pipe)

    def _look(self, timeout_s: float) -> None:
        self._ready = [pipe for pipe, _ in self._poll.poll(timeout_s) if pipe != self._control]

    def close(self) -> None:
        self._poll.close()
