"""SIGTERM and SIGINT of a daemon: they stop it while it serves, and are ignored from then on, until it has ended.

An asyncio loop restores the default handlers as it closes, so its own handlers leave a moment in which a second signal
ends the process with another status. Here no default handler is ever in place: libraries have threads that would get
the signal even if the main thread blocked it.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_MOST = 4096


class StopSignals:
    """Calls `stop` in the running loop when one of the signals comes."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._sockets: tuple[socket.socket, ...] = ()

    def handle(self) -> None:
        """Begin; in the main thread."""
        self._sockets = reading, writing = socket.socketpair()
        for end in self._sockets:
            end.setblocking(False)
        asyncio.get_running_loop().add_reader(reading, self._came)
        # A signal may come to another thread: the byte that Python writes wakes the loop all the same.
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        for number in _NUMBERS:
            signal.signal(number, _nothing)

    def _came(self) -> None:
        if set(self._sockets[0].recv(_MOST)).intersection(_NUMBERS):
            self._stop()

    def ignore(self) -> None:
        """Ignore them for the rest of this process; also if they were not handled."""
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        for end in self._sockets:
            asyncio.get_running_loop().remove_reader(end)
            end.close()


def _nothing(number: int, frame: FrameType | None) -> None:
    """Do nothing: the byte at the other end is read by the loop."""
