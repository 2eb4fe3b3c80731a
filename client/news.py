"""Waits for the engine's next reply: looks for as long as it is likely soon, then sleeps at the doorbell."""

from __future__ import annotations

import time

from shmserve.channel import ClientChannel
from shmserve.spin import SpinBudget
from shmserve.watch import beside
from shmserve.watch import spin as look

#: No wait is longer without a look at the connection: this is how soon a daemon's end is noticed.
LONGEST_WAIT_NS = 50_000_000
#: Of looking, between two questions whether the engine has come to this processor; meanwhile Python hears of signals.
_LOOKING_NS = 50_000


class News:
    """What one client has learnt of its waits; one thread waits at a time."""

    def __init__(self, budget: SpinBudget) -> None:
        self._budget = budget
        self._waited_ns = 0  # how long the last wait was that ended while it spun; not learnt from yet

    def wait(self, channel: ClientChannel, answered: int, until_ns: int, spin: bool) -> None:
        """Until the engine's count of replies is not `answered` any more, or a bounded while."""
        bell, replies = channel.reply_bell, channel.replies
        began_ns = now_ns = time.monotonic_ns()
        # While the engine has work to do: what the last wait was like, and the token that was not waited for then. It
        # must not wake this wait for nothing; if it is this reply's already, its counter has moved.
        if self._waited_ns:
            self._budget.waited(self._waited_ns)
            self._waited_ns = 0
            bell.try_take()
        spin_until_ns = min(began_ns + self._budget.ns, until_ns) if spin else 0
        replies.watch.seen = answered  # a note of the waiting thread's: others may collect meanwhile
        while True:
            # Where the engine shares this processor, it waits for this thread to sleep.
            until = 0 if beside(replies.watches) else min(spin_until_ns, now_ns + _LOOKING_NS)
            found = look(replies.watches, until)
            now_ns = time.monotonic_ns()
            if found >= 0:
                self._waited_ns = now_ns - began_ns
                return
            if now_ns >= spin_until_ns or not until:
                break
        if bell.wait(max(0, min(until_ns - now_ns, LONGEST_WAIT_NS))):
            self._budget.waited(time.monotonic_ns() - began_ns)
