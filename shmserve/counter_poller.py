"""Polling of counters that other processes advance.

>>> import numpy as np
>>> words = np.zeros(16, np.uint64)
>>> poller, other = CounterPoller(words.view(np.uint8), 8), CounterPoller(words.view(np.uint8), 0)
>>> poll_first([other, poller])
-1
>>> words[8] = 64                       # what the other process does
>>> poll_first([other, poller]), poll_all([other, poller])
(1, [1])
>>> poller.last_seen = poller.load()
>>> spin([other, poller], 0)             # polls at least once
-1
>>> spin_unless_same_cpu([other, poller], 0)
0
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .backend import NATIVE, core
from .fence import IN_ORDER, fence

__all__ = [
    "CounterPoller",
    "abandon",
    "bytes_in_flight",
    "poll_all",
    "poll_first",
    "same_cpu_writers",
    "spin",
    "spin_unless_same_cpu",
]

_POLLS_PER_CLOCK = 8


class PurePoller:
    """A counter and its last seen value."""

    __slots__ = ("_place", "_words", "last_seen")

    def __init__(self, memory: npt.NDArray[np.uint8], place: int) -> None:
        self._words = memory.data.cast("B").cast("Q")
        self._place = place
        #: The value that the owner has seen last; 0 at first.
        self.last_seen = 0

    def load(self) -> int:
        """Return the counter's present value."""
        return self._words[self._place]

    def close(self) -> None:
        """Release the memory; may be called twice."""
        self._words = memoryview(b"")


def pure_poll_first(pollers: list[PurePoller]) -> int:
    """Return the index of the first poller whose counter is not the last seen value; -1 if there is none."""
    # Without a call for each: among a hundred silent channels this is most of a request's cost.
    for place, poller in enumerate(pollers):
        if poller._words[poller._place] != poller.last_seen:
            _order()
            return place
    return -1


def pure_poll_all(pollers: list[PurePoller]) -> list[int]:
    """Return the indices of all of them."""
    places = [place for place, poller in enumerate(pollers) if poller._words[poller._place] != poller.last_seen]
    _order()
    return places


def pure_spin(pollers: list[PurePoller], until_ns: int, copiers: Sequence[object] = ()) -> int:
    """Poll as `poll_first` until `until_ns` (CLOCK_MONOTONIC). Copiers are native, so the list is empty here."""
    crowded = threading.active_count() > 1
    while True:
        for _ in range(_POLLS_PER_CLOCK):
            for place, poller in enumerate(pollers):
                if poller._words[poller._place] != poller.last_seen:
                    _order()
                    return place
        if time.monotonic_ns() >= until_ns:
            return -1
        if crowded:
            time.sleep(0)  # the interpreter lock is this thread's for 5 ms otherwise


def pure_spin_unless_same_cpu(pollers: list[PurePoller], until_ns: int) -> int:
    """Return the time at which a counter was seen to have moved; 0 if none has until then."""
    return (
        time.monotonic_ns() if pure_spin(pollers, until_ns) >= 0 else 0
    )  # pure_same_cpu_writers says why the CPU is not checked


def pure_bytes_in_flight(copiers: Sequence[object]) -> int:
    """Return -1: without native copiers no unpublished write is known."""
    return -1


def pure_abandon(copiers: Sequence[object]) -> None:
    """Do nothing: copiers exist only natively."""


def pure_same_cpu_writers(pollers: list[PurePoller]) -> list[int]:
    """Return the indices of those whose writer last ran on this CPU, where it cannot run while this thread spins."""
    return []  # Python before 3.13 cannot ask for its CPU


def _order() -> None:
    # ORDER: the counter before the head and payload that it publishes; pairs with RequestWriter.publish and ReplyWriter.complete.
    if not IN_ORDER:
        fence()


if TYPE_CHECKING:
    from ._core import (
        CounterPoller,
        abandon,
        bytes_in_flight,
        poll_all,
        poll_first,
        same_cpu_writers,
        spin,
        spin_unless_same_cpu,
    )
elif NATIVE:
    # These release the interpreter while they spin.
    CounterPoller, poll_first, poll_all, spin = core.CounterPoller, core.poll_first, core.poll_all, core.spin
    spin_unless_same_cpu, same_cpu_writers = core.spin_unless_same_cpu, core.same_cpu_writers
    bytes_in_flight, abandon = core.bytes_in_flight, core.abandon
else:
    CounterPoller, poll_first, poll_all, spin = PurePoller, pure_poll_first, pure_poll_all, pure_spin
    spin_unless_same_cpu, same_cpu_writers = pure_spin_unless_same_cpu, pure_same_cpu_writers
    bytes_in_flight, abandon = pure_bytes_in_flight, pure_abandon
