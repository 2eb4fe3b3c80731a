"""Doorbell between processes that do not trust one another: a pipe, of which each has one end.

An eventfd would not do: both sides share one open file, and a peer that clears its O_NONBLOCK and fills
its counter blocks the other side for ever. The ends of a pipe are separate files. A peer can overwrite or
truncate a semaphore's memory; the state of a pipe is the kernel's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat

from .errors import ProtocolMismatch

_TOKEN = b"\0"
_ALL_TOKENS = 65536
#: Descriptors below it fit into a select (FD_SETSIZE).
_LEAST_UNFIT = 1024


def create_pipe() -> tuple[int, int]:
    """(the listener's end, the ringer's end), neither of which blocks."""
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


def check_pipe(descriptor: int, mode: int) -> None:
    """Raises ProtocolMismatch unless the other process sent this end of a pipe (O_RDONLY, O_WRONLY); it blocks no more."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode) or flags & os.O_ACCMODE != mode:
        raise ProtocolMismatch(f"a doorbell is the {'writing' if mode == os.O_WRONLY else 'reading'} end of a pipe")
    if not flags & os.O_NONBLOCK:
        os.set_blocking(descriptor, False)


class PipeRinger:
    """The writing end; takes the descriptor over, unless it is something else (ProtocolMismatch)."""

    def __init__(self, descriptor: int) -> None:
        check_pipe(descriptor, os.O_WRONLY)
        self._descriptor = descriptor

    def ring(self) -> None:
        # EAGAIN: 65,536 tokens wait already. EPIPE: the listener is gone, which the connection reports.
        with contextlib.suppress(OSError):
            os.write(self._descriptor, _TOKEN)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class PipeListener:
    """The reading end; takes the descriptor over, unless it is something else (ProtocolMismatch)."""

    def __init__(self, descriptor: int) -> None:
        check_pipe(descriptor, os.O_RDONLY)
        self._descriptor = descriptor
        #: None while it is used: a signal handler or a finalizer that interrupts a wait makes another one.
        self._poll: select.poll | None = None

    def _take_poll(self) -> select.poll:
        poll, self._poll = self._poll, None
        if poll is None:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
        return poll

    def count(self) -> int:
        return len(self._take_poll().poll(0))

    def try_take(self) -> bool:
        try:
            return bool(os.read(self._descriptor, _ALL_TOKENS))
        except OSError:
            return False

    def wait(self, timeout_ns: int) -> bool:
        # A client that knows when its reply is due wakes up shortly before: select counts microseconds of the monotonic clock,
        # poll whole milliseconds; rounded up, or a short wait would not wait.
        if self._descriptor < _LEAST_UNFIT:
            return bool(select.select((self._descriptor,), (), (), timeout_ns / 1e9)[0]) and self.try_take()
        poll = self._take_poll()
        ready = poll.poll(-(-timeout_ns // 1_000_000))
        self._poll = poll
        return bool(ready) and self.try_take()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._poll = None
            os.close(descriptor)
