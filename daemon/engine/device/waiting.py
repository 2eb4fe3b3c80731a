"""How the engine waits for the device: asleep while it is surely at work, looking when it is about to be done.

A wake-up costs tens of microseconds, more than many a policy runs; looking for milliseconds costs a core. So a wait
has three parts, as long as what was learnt from the latest ones says:

    asleep on the doorbell          looking at the event               asleep on the event
    |-------------------------------|----------------------------------|---------------->
    0                 shortest of late - 0.5 ms       + the spin budget
    (a request that comes meanwhile
     wakes, and is copied in)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from shmserve.spin import SpinBudget

from .interface import Event

#: Waits that are remembered.
_REMEMBERED = 8
#: Before the shortest of the late waits is over, looking begins: timers and wake-ups are not exact.
_EARLY_NS = 500_000
#: A shorter sleep is not worth its wake-up.
_LEAST_SLEEP_NS = 300_000


class DeviceWait:
    """Learns from each wait how to do the next one."""

    def __init__(self, budget: SpinBudget) -> None:
        """`budget`: of the looking part; one that never looks (spin_us = 0) leaves all to sleeping on the event."""
        self._budget = budget
        self._late: deque[int] = deque(maxlen=_REMEMBERED)

    @property
    def sleep_ns(self) -> int:
        """How long the next wait sleeps before it looks."""
        if len(self._late) < _REMEMBERED:
            return 0
        asleep = min(self._late) - _EARLY_NS
        return asleep if asleep >= _LEAST_SLEEP_NS else 0

    def until(self, event: Event, look: Callable[[], None], sleep: Callable[[int], None]) -> None:
        """Return once `event` has passed; raises what the device says.

        `look` sees to requests that came meanwhile; `sleep(ns)` ends early for a new one.
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
