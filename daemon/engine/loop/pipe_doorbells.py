"""Doorbells of transport `sealed`: one pipe for each client, all watched with one epoll."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import time
from collections.abc import Collection

from shmserve.layout import number_of

from ..channel.channel_state import ChannelState

_READ_BYTES = 65536
#: A client is muted after this many rings more than its requests need. A client that keeps to the protocol rings once
#: or twice for each request; an earlier engine may have left the rings of a request for each of the channel's 64 slots.
_SPARE_RINGS = 256
_RINGS = 2
_MUTED_NS = 1_000_000_000
_MS, _SECOND_NS = 1_000_000, 1_000_000_000
_ITIMERSPEC = struct.Struct("@4l")  # interval, value: seconds and nanoseconds


class _Timer:
    """A timerfd: epoll itself counts milliseconds, and a request is expected to a tenth of one."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._settime = libc.timerfd_settime
        self.descriptor: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")

    def arm(self, after_ns: int) -> None:
        """Make the descriptor readable after this time; 0: never."""
        self._settime(self.descriptor, 0, _ITIMERSPEC.pack(0, 0, *divmod(after_ns, _SECOND_NS)), None)


class _Pipe:
    """One client's pipe and its count of rings."""

    __slots__ = ("allowed", "muted_until_ns", "pipe", "rings", "state")

    def __init__(self, state: ChannelState, pipe: int) -> None:
        self.state = state
        self.pipe = pipe
        self.rings = 0
        #: Rings allowed in addition to those of the requests that were seen; set when the first ring comes.
        self.allowed: int | None = None
        self.muted_until_ns = 0


class PipeDoorbells:
    """The engine's `Doorbells` over the pipes of all channels; each pipe's descriptor belongs to its channel.

    A pipe names the client that rang, so only that channel is polled. A client that keeps ringing without a request is
    muted for a while, so it cannot wake the engine more often than requests do; the regular scan finds its requests.
    """

    names_channels = True

    def __init__(self, control: int) -> None:
        """Watch `control`, the supervisor's socket: a message ends a wait, but does not count as a ring."""
        self._poll = select.epoll()
        self._poll.register(control, select.EPOLLIN)
        self._timer = _Timer()
        self._poll.register(self._timer.descriptor, select.EPOLLIN)
        self._no_pipes = control, self._timer.descriptor
        self._pipes: dict[int, _Pipe] = {}
        self._muted: list[_Pipe] = []
        self._ready: list[int] = []

    def watch(self, state: ChannelState) -> None:
        pipe = state.channel.request_pipe
        if pipe is not None:
            self._pipes[pipe] = _Pipe(state, pipe)
            self._poll.register(pipe, select.EPOLLIN)

    def forget(self, state: ChannelState) -> None:
        pipe = state.channel.request_pipe
        pipe_state = self._pipes.pop(pipe, None) if pipe is not None else None
        if pipe_state is not None:
            self._ignore(pipe_state)
            if pipe_state in self._muted:
                self._muted.remove(pipe_state)

    def count(self) -> int:
        if not self._ready:
            self._look(0)
        return len(self._ready)

    def take(self) -> Collection[ChannelState]:
        """Read each ready pipe once, even if more is left in it, and return the channels that rang."""
        if not self._ready:
            self._look(0)
        rang = []
        while self._ready:
            pipe_state = self._pipes[self._ready.pop()]
            rings = 0
            with contextlib.suppress(OSError):
                rings = len(os.read(pipe_state.pipe, _READ_BYTES))
                if not rings:
                    # The client lives but closed its end, which epoll would report for ever. The scan finds requests.
                    self._ignore(pipe_state)
            if rings:
                rang.append(pipe_state.state)
                self._count(pipe_state, rings)
        return rang

    def _count(self, pipe_state: _Pipe, rings: int) -> None:
        seen = _RINGS * number_of(pipe_state.state.poller.last_seen)
        if pipe_state.allowed is None:
            pipe_state.allowed = _SPARE_RINGS - seen
        pipe_state.rings += rings
        if pipe_state.rings > seen + pipe_state.allowed:
            pipe_state.rings, pipe_state.allowed = 0, None
            self._ignore(pipe_state)
            self._muted.append(pipe_state)
            pipe_state.muted_until_ns = 0

    def wait(self, timeout_ns: int) -> bool:
        """Sleep as `Doorbells.wait` does; the ring stays for `take`."""
        if self._ready:
            return True
        fine = timeout_ns % _MS
        if fine:
            self._timer.arm(timeout_ns)
        self._look(timeout_ns / 1e9)
        if fine:
            self._timer.arm(0)  # which also makes it unreadable
        return bool(self._ready)

    def unmute(self, now_ns: int) -> None:
        for pipe_state in tuple(self._muted):
            if not pipe_state.muted_until_ns:
                pipe_state.muted_until_ns = now_ns + _MUTED_NS
            elif now_ns >= pipe_state.muted_until_ns:
                self._muted.remove(pipe_state)
                self._poll.register(pipe_state.pipe, select.EPOLLIN)

    def _ignore(self, pipe_state: _Pipe) -> None:
        with contextlib.suppress(OSError):
            self._poll.unregister(pipe_state.pipe)
        if pipe_state.pipe in self._ready:
            self._ready.remove(pipe_state.pipe)

    def _look(self, timeout_s: float) -> None:
        self._ready = [pipe for pipe, _ in self._poll.poll(timeout_s) if pipe not in self._no_pipes]

    def close(self) -> None:
        if not self._poll.closed:
            os.close(self._timer.descriptor)
        self._poll.close()
