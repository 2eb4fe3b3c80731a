"""Looks at counters that another process moves, again and again, for as long as news is likely.

>>> import numpy as np
>>> words = np.zeros(16, np.uint64)
>>> watch, other = Watch(words.view(np.uint8), 8), Watch(words.view(np.uint8), 0)
>>> moved([other, watch])
-1
>>> words[8] = 64                       # what the other process does
>>> moved([other, watch]), all_moved([other, watch])
(1, [1])
>>> watch.seen = watch.now()
>>> spin([other, watch], 0)             # looks at least once
-1
>>> spin_apart([other, watch], 0)
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

__all__ = ["Watch", "all_moved", "beside", "give_up", "moved", "spin", "spin_apart", "written"]

_LOOKS_PER_CLOCK = 8


class PythonWatch:
    """One counter, and what was last seen of it."""

    __slots__ = ("_place", "_words", "seen")

    def __init__(self, memory: npt.NDArray[np.uint8], place: int) -> None:
        self._words = memory.data.cast("B").cast("Q")
        self._place = place
        #: The counter as its owner has seen it; what is 0 at first.
        self.seen = 0

    def now(self) -> int:
        """The counter as it is."""
        return self._words[self._place]

    def close(self) -> None:
        """Let go of the memory; may be called twice."""
        self._words = memoryview(b"")


def python_moved(watches: list[PythonWatch]) -> int:
    """The place of the first watch whose counter is not what was seen; -1 if there is none."""
    # Without a call for each: among a hundred silent channels this is most of what a request costs.
    for place, watch in enumerate(watches):
        if watch._words[watch._place] != watch.seen:
            _order()
            return place
    return -1


def python_all_moved(watches: list[PythonWatch]) -> list[int]:
    """The places of all of them."""
    places = [place for place, watch in enumerate(watches) if watch._words[watch._place] != watch.seen]
    _order()
    return places


def python_spin(watches: list[PythonWatch], until_ns: int, stagers: Sequence[object] = ()) -> int:
    """As `moved`, looking again and again until `until_ns` (CLOCK_MONOTONIC). Stagers are native, or there are none."""
    crowded = threading.active_count() > 1
    while True:
        for _ in range(_LOOKS_PER_CLOCK):
            for place, watch in enumerate(watches):
                if watch._words[watch._place] != watch.seen:
                    _order()
                    return place
        if time.monotonic_ns() >= until_ns:
            return -1
        if crowded:
            time.sleep(0)  # the interpreter lock is this thread's for 5 ms otherwise


def python_spin_apart(watches: list[PythonWatch], until_ns: int) -> int:
    """The time at which one of them was seen to have moved; 0 if none has until then, or its writer is on this processor."""
    return (
        time.monotonic_ns() if python_spin(watches, until_ns) >= 0 else 0
    )  # python_beside says why it is not looked for


def python_written(stagers: Sequence[object]) -> int:
    """How far the clients of these stagers are with requests that did not come yet; -1, for there are none."""
    return -1


def python_give_up(stagers: Sequence[object]) -> None:
    """No longer wait for what the clients of these stagers are writing."""


def python_beside(watches: list[PythonWatch]) -> list[int]:
    """The places of those whose writer was last seen on this very processor: while this thread looks, it cannot run."""
    return []  # Python before 3.13 does not know where it runs


def _order() -> None:
    # ORDER: the counter before what it tells of; pairs with RequestWriter.publish and ReplyWriter.complete.
    if not IN_ORDER:
        fence()


if TYPE_CHECKING:
    from ._core import Watch, all_moved, beside, give_up, moved, spin, spin_apart, written
elif NATIVE:
    # These do not hold the interpreter while they look.
    Watch, moved, all_moved, spin = core.Watch, core.moved, core.all_moved, core.spin
    spin_apart, beside = core.spin_apart, core.beside
    written, give_up = core.written, core.give_up
else:
    Watch, moved, all_moved, spin = PythonWatch, python_moved, python_all_moved, python_spin
    spin_apart, beside = python_spin_apart, python_beside
    written, give_up = python_written, python_give_up
