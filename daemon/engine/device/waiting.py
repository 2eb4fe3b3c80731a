"""Adaptive wait for the device: sleeps while it surely works, and polls when it is about to finish.

A wake-up costs tens of microseconds, longer than many policies run; polling for milliseconds costs a core. So a wait
has three parts, whose lengths follow from the latest waits:

    asleep on the doorbell          polling the event                  asleep on the event
    |-------------------------------|----------------------------------|---------------->
    0            shortest recent wait - 0.5 ms         + the spin budget
    (a request that arrives
     wakes it, and is copied in)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from shmserve.spin import SpinBudget

from .interface import Event

#: Number of recent waits that are considered.
_REMEMBERED = 8
#: Polling begins this long before the shortest recent wait would end, because timers and wake-ups are not exact.
_EARLY_NS = 500_000
#: Minimum sleep; a shorter one is not worth its wake-up.
_LEAST_SLEEP_NS = 300_000


class DeviceWait:
    """Adapts each wait to the durations of the previous ones."""

    def __init__(self, budget: SpinBudget) -> None:
        """Create it; `budget` limits the polling. Without polling (spin_us = 0) the wait sleeps on the event instead."""
        self._budget = budget
        self._late: deque[int] = deque(maxlen=_REMEMBERED)

    @property
    def sleep_ns(self) -> int:
        """Duration of the next wait's sleep before it polls."""
        if len(self._late) < _REMEMBERED:
            return 0
        asleep = min(self._late) - _EARLY_NS
        return asleep if asleep >= _LEAST_SLEEP_NS else 0

    def until(self, event: Event, look: Callable[[], None], sleep: Callable[[int], None]) -> None:
        """Wait until `event` has passed; raises the device's errors.

        `look` handles requests that arrive during the wait; `sleep(ns)` ends early for a new one.
        """
        began_ns = now_ns = time.monotonic_ns()
        awake_ns = began_ns + self.sleep_ns
        while not event.query():
            look()
            now_ns = time.monotonic_ns()
            if now_ns + _LEAST_SLEEP_NS < awake_ns:
                sleep(awake_ns - now_ns)
            elif now_ns - max(began_ns, awake_ns) >= self._budget.ns:
                event.synchronize()
                break
        now_ns = time.monotonic_ns()
        self._late.append(now_ns - began_ns)
        self._budget.waited(max(0, now_ns - awake_ns))
