"""Waits for the engine's next reply: looks for as long as it is likely soon, then sleeps at the doorbell."""

from __future__ import annotations

import threading
import time

from shmserve.channel import ClientChannel
from shmserve.spin import SpinBudget

#: No wait is longer without a look at the connection: this is how soon a daemon's end is noticed.
LONGEST_WAIT_NS = 50_000_000
_LOOKS_PER_CLOCK = 16


class News:
    """What one client has learnt of its waits; one thread waits at a time."""

    def __init__(self, budget: SpinBudget) -> None:
        self._budget = budget
        self._waited_ns = 0  # how long the last wait was that ended while it spun; not learnt from yet

    def wait(self, channel: ClientChannel, answered: int, until_ns: int, spin: bool) -> None:
        """Until the engine's count of replies is not `answered` any more, or a bounded while."""
        bell, words, counter = channel.reply_bell, channel.replies.words, channel.replies.counter
        began_ns = now_ns = time.monotonic_ns()
        # While the engine has work to do: what the last wait was like, and the token that was not waited for then. It
        # must not wake this wait for nothing; if it is this reply's already, its counter has moved.
        if self._waited_ns:
            self._budget.waited(self._waited_ns)
            self._waited_ns = 0
            bell.try_take()
        spin_until_ns = min(began_ns + self._budget.ns, until_ns) if spin else 0
        crowded = threading.active_count() > 1
        while True:
            for _ in range(_LOOKS_PER_CLOCK):
                if words[counter] != answered:
                    self._waited_ns = time.monotonic_ns() - began_ns
                    return
            now_ns = time.monotonic_ns()
            if now_ns >= spin_until_ns:
                break
            if crowded:
                time.sleep(0)  # the interpreter lock is this thread's for 5 ms otherwise
        if bell.wait(max(0, min(until_ns - now_ns, LONGEST_WAIT_NS))):
            self._budget.waited(time.monotonic_ns() - began_ns)
