"""Streams and events of a GPU that does everything as late as CUDA allows, and finds accesses that nothing orders.

The host puts work into streams. A stream keeps two marks on it:

    done on the device    what later work of the device needs has been done
    seen by the host      the host has waited for an event behind it

A copy from the host reads its bytes when later work needs them, and the bytes may change once the host has seen the copy.
A copy to the host delivers its bytes when the host sees it. Kernels run when they are launched, after the work before them
in their stream; a kernel or copy that may run at the same time as another one on the same bytes is an error (`Hazard`),
found with vector clocks: streams are ordered only by events, and work that is launched after the host has waited.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

Clock = dict[int, int]


class Hazard(BaseException):
    """The program under test has a race. Not an Exception: no code may take it for an error of the model."""


class Work(Protocol):
    """What lies in a stream beside events and waits."""

    def do(self) -> None:
        """Do it on the device."""

    def see(self) -> None:
        """The host has waited for it."""


class Mark:
    """One recording of an event."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.clock = dict(stream.clock)
        self.passed = False


@dataclass
class _Item:
    what: Work | Mark
    waits: bool = False
    done: bool = False


class Stream:
    """Work in the order in which the host launched it."""

    _numbers = itertools.count()

    def __init__(self, device: int, host: Clock) -> None:
        self.device = device
        self.stream_id = next(self._numbers)
        self.clock: Clock = {}
        self.items: deque[_Item] = deque()
        self._host = host

    def tick(self) -> int:
        """Begin one piece of work: it comes after all that the host has seen; return its number in this stream."""
        join(self.clock, self._host)
        self.clock[self.stream_id] = number = self.clock.get(self.stream_id, 0) + 1
        return number

    def put(self, work: Work) -> None:
        self.items.append(_Item(work))

    def record(self) -> Mark:
        self.tick()
        mark = Mark(self)
        self.items.append(_Item(mark))
        return mark

    def wait(self, mark: Mark) -> None:
        """Later work comes after the mark."""
        join(self.clock, mark.clock)
        if not mark.passed:
            self.items.append(_Item(mark, waits=True))

    def do(self, until: Mark | None = None) -> None:
        """Do what lies in the stream, up to the mark."""
        for item in list(self.items):
            if isinstance(item.what, Mark):
                if item.waits and not item.done:
                    item.done = True
                    if not item.what.passed:
                        item.what.stream.do(item.what)
                elif item.what is until:
                    return
            elif not item.done:
                item.done = True
                item.what.do()

    def see(self, until: Mark | None = None) -> None:
        """The host has waited for the stream, up to the mark."""
        self.do(until)
        while self.items:
            item = self.items.popleft()
            if not isinstance(item.what, Mark):
                item.what.see()
            elif item.waits:
                if not item.what.passed:
                    item.what.stream.see(item.what)
            else:
                item.what.passed = True
                join(self._host, item.what.clock)
                if item.what is until:
                    return
        join(self._host, self.clock)


def join(clock: Clock, other: Clock) -> None:
    """Let what follows `clock` follow `other` as well."""
    for stream, number in other.items():
        if clock.get(stream, 0) < number:
            clock[stream] = number


@dataclass
class _Access:
    start: int
    end: int
    writes: bool
    stream: int
    number: int
    name: str


class Accesses:
    """The accesses to one piece of the device's memory that later ones must follow."""

    def __init__(self, *, is_shared: bool = False) -> None:
        """`is_shared`: another process writes to the memory."""
        self.is_shared = is_shared
        self._latest: list[_Access] = []

    def add(self, stream: Stream, number: int, start: int, end: int, *, writes: bool, name: str) -> None:
        """Note an access of work in the stream; raises Hazard if it may run at the same time as one that changes the bytes."""
        kept = []
        for old in self._latest:
            apart = old.end <= start or end <= old.start
            follows = old.stream == stream.stream_id or old.number <= stream.clock.get(old.stream, 0)
            if not apart and not follows and (writes or old.writes):
                raise Hazard(
                    f"{name} {'writes to' if writes else 'reads'} device memory while {old.name} may still "
                    f"{'write to' if old.writes else 'read'} it: nothing orders their streams"
                )
            covered = start <= old.start and old.end <= end
            if not (covered and follows and (writes or not old.writes)):
                kept.append(old)
        kept.append(_Access(start, end, writes, stream.stream_id, number, name))
        self._latest = kept


class Threads(threading.local):
    """What CUDA keeps for each thread: the current device, and each device's current stream."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, Any] = {}
