"""Looks at counters that another process moves, again and again, for as long as news is likely.

>>> import numpy as np
>>> words = np.zeros(16, np.uint64)
>>> poller, other = CounterPoller(words.view(np.uint8), 8), CounterPoller(words.view(np.uint8), 0)
>>> poll_first([other, poller])
-1
>>> words[8] = 64                       # what the other process does
>>> poll_first([other, poller]), poll_all([other, poller])
(1, [1])
>>> poller.last_seen = poller.load()
>>> spin([other, poller], 0)             # looks at least once
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

_LOOKS_PER_CLOCK = 8


class PurePoller:
    """One counter, and what was last seen of it."""

    __slots__ = ("_place", "_words", "last_seen")

    def __init__(self, memory: npt.NDArray[np.uint8], place: int) -> None:
        self._words = memory.data.cast("B").cast("Q")
        self._place = place
        #: The counter as its owner has seen it; what is 0 at first.
        self.last_seen = 0

    def load(self) -> int:
        """The counter as it is."""
        return self._words[self._place]

    def close(self) -> None:
        """Let go of the memory; may be called twice."""
        self._words = memoryview(b"")


def pure_poll_first(pollers: list[PurePoller]) -> int:
    """The place of the first poller whose counter is not what was seen; -1 if there is none."""
    # Without a call for each: among a hundred silent channels this is most of what a request costs.
    for place, poller in enumerate(pollers):
        if poller._words[poller._place] != poller.last_seen:
            _order()
            return place
    return -1


def pure_poll_all(pollers: list[PurePoller]) -> list[int]:
    """The places of all of them."""
    places = [place for place, poller in enumerate(pollers) if poller._words[poller._place] != poller.last_seen]
    _order()
    return places


def pure_spin(pollers: list[PurePoller], until_ns: int, copiers: Sequence[object] = ()) -> int:
    """As `poll_first`, looking again and again until `until_ns` (CLOCK_MONOTONIC). Copiers are native, or there are none."""
    crowded = threading.active_count() > 1
    while True:
        for _ in range(_LOOKS_PER_CLOCK):
            for place, poller in enumerate(pollers):
                if poller._words[poller._place] != poller.last_seen:
                    _order()
                    return place
        if time.monotonic_ns() >= until_ns:
            return -1
        if crowded:
            time.sleep(0)  # the interpreter lock is this thread's for 5 ms otherwise


def pure_spin_unless_same_cpu(pollers: list[PurePoller], until_ns: int) -> int:
    """The time at which one of them was seen to have moved; 0 if none has until then, or its writer is on this processor."""
    return (
        time.monotonic_ns() if pure_spin(pollers, until_ns) >= 0 else 0
    )  # pure_same_cpu_writers says why it is not looked for


def pure_bytes_in_flight(copiers: Sequence[object]) -> int:
    """How far the clients of these copiers are with requests that did not come yet; -1, for there are none."""
    return -1


def pure_abandon(copiers: Sequence[object]) -> None:
    """No longer wait for what the clients of these copiers are writing."""


def pure_same_cpu_writers(pollers: list[PurePoller]) -> list[int]:
    """The places of those whose writer was last seen on this very processor: while this thread looks, it cannot run."""
    return []  # Python before 3.13 does not know where it runs


def _order() -> None:
    # ORDER: the counter before what it tells of; pairs with RequestWriter.publish and ReplyWriter.complete.
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
    # These do not hold the interpreter while they look.
    CounterPoller, poll_first, poll_all, spin = core.CounterPoller, core.poll_first, core.poll_all, core.spin
    spin_unless_same_cpu, same_cpu_writers = core.spin_unless_same_cpu, core.same_cpu_writers
    bytes_in_flight, abandon = core.bytes_in_flight, core.abandon
else:
    CounterPoller, poll_first, poll_all, spin = PurePoller, pure_poll_first, pure_poll_all, pure_spin
    spin_unless_same_cpu, same_cpu_writers = pure_spin_unless_same_cpu, pure_same_cpu_writers
    bytes_in_flight, abandon = pure_bytes_in_flight, pure_abandon
