"""Spin budget: how long to poll before sleeping.

A blocking wake-up across processors costs 50-60 us in a virtual machine, more than everything else
on the request path together; a look at a word costs 0.1 us. So a side that expects news soon looks
for a while first, and one that does not sleeps at once.

>>> budget = SpinBudget("adaptive", cap_ns=200_000)
>>> budget.ns                                       # nothing known yet: sleep
0
>>> for _ in range(20): budget.waited(30_000)       # news came after 30 us each time
>>> 30_000 < budget.ns <= 200_000
True
>>> for _ in range(20): budget.waited(20_000_000)   # a 50 Hz loop: spinning would only burn the core
>>> budget.ns
0
>>> SpinBudget(40).ns, SpinBudget(0).ns             # a fixed number of microseconds, or never
(40000, 0)
"""

from __future__ import annotations

from typing import Literal

SpinSetting = int | Literal["adaptive"]

#: Above this expected wait a spin costs more processor time than the wake-up it saves.
DEFAULT_CAP_NS = 1_000_000
#: The longest spin, for ever: a deadline ends it. A larger number does not fit into a word.
LONGEST_NS = 1 << 62


class SpinBudget:
    """The time to spin before blocking, learnt from how long the last waits took."""

    def __init__(self, setting: SpinSetting = "adaptive", *, cap_ns: int = DEFAULT_CAP_NS) -> None:
        if setting != "adaptive" and (type(setting) is not int or setting < 0):
            raise ValueError(f"spin_us = {setting!r}: 0 or more microseconds, or 'adaptive'")
        #: Whether it learns.
        self.is_adaptive = setting == "adaptive"
        self._cap_ns = cap_ns
        self._average_ns = float(cap_ns * 4)
        #: The budget of the next wait, in nanoseconds.
        self.ns = 0 if isinstance(setting, str) else min(setting * 1000, LONGEST_NS)

    def waited(self, wait_ns: int) -> None:
        """Learn that news came `wait_ns` after this side began to wait."""
        if not self.is_adaptive:
            return
        # One long pause must not end the spinning of a busy loop, nor one burst start it: long waits
        # count no more than four caps, and a quarter of each wait goes into the average.
        average = self._average_ns + (min(wait_ns, self._cap_ns * 4) - self._average_ns) * 0.25
        self._average_ns = average
        self.ns = min(int(average * 2) + 20_000, self._cap_ns) if average < self._cap_ns else 0
