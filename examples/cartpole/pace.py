"""The beat of a control loop: an absolute schedule that never drifts, and counts the beats it missed."""

from __future__ import annotations

import time


class Pace:
    """Beats at `start + n * period` on CLOCK_MONOTONIC, n = 1, 2, 3 ..., whatever the work in between takes.

    Work that runs past a beat misses it: the loop goes on with the first beat that is still to come.
    """

    def __init__(self, rate_hz: float) -> None:
        self.period_ns = round(1e9 / rate_hz)
        self.missed = 0
        self._next_ns = 0

    def start(self) -> None:
        """Count beats from now; the first is one period away."""
        self._next_ns = time.monotonic_ns() + self.period_ns

    def wait(self) -> None:
        """Sleep until the next beat."""
        late_ns = time.monotonic_ns() - self._next_ns
        if late_ns > 0:
            missed = late_ns // self.period_ns + 1
            self.missed += missed
            self._next_ns += missed * self.period_ns
        while (remaining_ns := self._next_ns - time.monotonic_ns()) > 0:
            time.sleep(remaining_ns / 1e9)
        self._next_ns += self.period_ns
