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
>>> spin_unless_blocked([other, poller], 0)
0
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from shmserve.fence import IN_ORDER, fence
from shmserve.layout import COUNTER_LINE

from .cut_through import CutThroughCopier
from .memory import Closed, words_of
from .slots import Slots

_POLLS_PER_CLOCK = 8
_NO_COPIERS: list[CutThroughCopier] = []
_closed: Any = Closed("a poller of this list, or the segment itself, was")


class CounterPoller:
    """A counter of another process and its last seen value."""

    __slots__ = ("_place", "_words", "last_seen")

    def __init__(self, memory: npt.NDArray[np.uint8], place: int, /) -> None:
        """Poll the counter at `place`, in words of 8 bytes."""
        words = words_of(memory)
        if not 0 <= place <= len(words) - len(COUNTER_LINE.names):
            raise ValueError("this counter is not in this memory")
        self._words = words
        self._place = place
        #: The value that the owner has seen last; 0 at first.
        self.last_seen = 0

    def load(self) -> int:
        """Return the counter's present value."""
        value = self._words[self._place]
        _order()
        return value

    def close(self) -> None:
        """Release the memory once no thread polls it; may be called twice."""
        self._words = _closed


def poll_first(pollers: list[CounterPoller], /) -> int:
    """Return the index of the first poller whose counter is not the last seen value; -1 if there is none."""
    # Without a call or a count for each: among a hundred silent channels this is most of a request's cost.
    for poller in pollers:
        if poller._words[poller._place] != poller.last_seen:
            _order()
            return pollers.index(poller)
    return -1


def poll_all(pollers: list[CounterPoller], /) -> list[int]:
    """Return the indices of all of them."""
    places = [place for place, poller in enumerate(pollers) if poller._words[poller._place] != poller.last_seen]
    _order()
    return places


def spin(
    pollers: list[CounterPoller],
    until_ns: int,
    copiers: list[CutThroughCopier] = _NO_COPIERS,
    yields: bool = False,
    /,
) -> int:
    """Poll as `poll_first` until `until_ns` (CLOCK_MONOTONIC); `yields` lets others run. The copiers do nothing here."""
    if (found := poll_first(pollers)) >= 0:
        return found
    # Private copies: while this thread spins, another may set `last_seen` or close a poller, and the memory stays mapped.
    counters = [(poller._words, poller._place, poller.last_seen, index) for index, poller in enumerate(pollers)]
    crowded = threading.active_count() > 1
    while True:
        for _ in range(_POLLS_PER_CLOCK):
            for words, place, last_seen, index in counters:
                if words[place] != last_seen:
                    _order()
                    return index
        if time.monotonic_ns() >= until_ns:
            return -1
        if yields:
            os.sched_yield()
        if crowded:
            time.sleep(0)  # the interpreter lock is this thread's for 5 ms otherwise


def spin_unless_blocked(pollers: list[CounterPoller], until_ns: int, yields: bool = False, /) -> int:
    """Return how long it took until a counter was seen to have moved (ns); 0 if none has until then.

    `yields` lets others run between two polls.
    """
    # same_cpu_writers says why the CPU is not checked.
    began_ns = time.monotonic_ns()
    return 0 if spin(pollers, until_ns, _NO_COPIERS, yields) < 0 else max(1, time.monotonic_ns() - began_ns)


def same_cpu_writers(pollers: list[CounterPoller], /) -> list[int]:
    """Return the indices of those whose writer runs on this CPU, where it cannot run while this thread spins."""
    return []  # Python cannot ask for its CPU


def sleeping_writers(pollers: list[CounterPoller], /) -> list[int]:
    """Return the indices of those whose writer sleeps, or has not run since it was rung."""
    return []  # as above: without the CPU, it is of no use


def mark_asleep(writers: list[Slots], /) -> None:
    """Do nothing: this side does not say where it runs."""


def mark_awake(writers: list[Slots], /) -> None:
    """Do nothing, as `mark_asleep`."""


def _order() -> None:
    # ORDER: the counter before the head and payload that it publishes; pairs with Slots.publish and Slots.complete.
    if not IN_ORDER:
        fence()
