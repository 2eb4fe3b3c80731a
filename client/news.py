"""Waits for the engine's next reply: looks for as long as it is likely soon, then sleeps at the doorbell."""

from __future__ import annotations

import time

from shmserve.channel import ClientChannel
from shmserve.counter_poller import spin_unless_same_cpu
from shmserve.spin import SpinBudget

#: No wait is longer without a look at the connection: this is how soon a daemon's end is noticed.
LONGEST_WAIT_NS = 50_000_000


class News:
    """What one client has learnt of its waits; one thread waits at a time."""

    def __init__(self, budget: SpinBudget) -> None:
        self._budget = budget
        self._waited_ns = 0  # how long the last wait was that ended while it spun; not learnt from yet

    def wait(self, channel: ClientChannel, until_ns: int, spin: bool) -> None:
        """Until the engine's count of replies is not the one that their watch has seen any more, or a bounded while."""
        bell = channel.reply_bell
        began_ns = time.monotonic_ns()
        # While the engine has work to do: what the last wait was like, and the token that was not waited for then. It
        # must not wake this wait for nothing; if it is this reply's already, its counter has moved.
        if self._waited_ns:
            self._budget.waited(self._waited_ns)
            self._waited_ns = 0
            bell.try_take()
        moved_ns = spin_unless_same_cpu(
            channel.replies.pollers, min(began_ns + self._budget.ns, until_ns) if spin else 0
        )
        if moved_ns:
            self._waited_ns = moved_ns - began_ns
            return
        now_ns = time.monotonic_ns()
        if bell.wait(max(0, min(until_ns - now_ns, LONGEST_WAIT_NS))):
            self._budget.waited(time.monotonic_ns() - began_ns)
