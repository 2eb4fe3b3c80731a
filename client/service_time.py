"""Service time of a client's requests, learnt from their replies: when to be awake for the next one.

A client that sleeps until the doorbell rings pays for its wake-up after the reply is there. One that knows when the reply is
due wakes up shortly before, and polls for it. Pure logic: it reads no clock. All times are nanoseconds.

>>> service = ServiceTime()
>>> for _ in range(9): service.note(5_000_000)
>>> service.sleep_ns, service.poll_ns              # awake 0.1 ms before, and until 0.05 ms after
(4900000, 150000)
>>> for time_ns in (2_000_000, 9_000_000): service.note(time_ns)
>>> service.sleep_ns                               # one time more and one less make it no less regular
4900000
>>> for time_ns in (3_000_000, 8_000_000): service.note(time_ns)
>>> service.sleep_ns                               # but two of each do: sleep until the doorbell rings
0
"""

from __future__ import annotations

from collections import deque

#: Longest time for which a client polls for one reply: 2 % of a processor at 50 Hz. It is less for a short service.
LONGEST_NS = 400_000
_PART = 8
#: Shorter services are spun through (shmserve/spin.py).
LEAST_NS, MOST_NS = 1_000_000, 1_000_000_000
#: This many replies are compared; the shortest and the longest time among them do not count.
_RECENT = 9
#: Limits of the time from the planned wake-up until the earliest reply, which follows how late timers end.
_FIRST_LEAD_NS, _LEAST_LEAD_NS, _MOST_LEAD_NS = 100_000, 60_000, 250_000
#: A client that was awake for less than the first, or more than the second time before the earliest reply, wakes up earlier or
#: later next time.
_LITTLE_NS, _LONG_NS = 20_000, 60_000
_EARLIER_NS, _LATER_NS = 20_000, 10_000
#: Replies may come this much later than the latest of those before.
_TAIL_NS = 50_000
#: After polling in vain this many times it does not for some requests, twice as many each time.
_MISSES, _FIRST_DOUBT, _LONGEST_DOUBT = 3, 16, 1024


class ServiceTime:
    """Learns how long the engine takes for a request, from its publication to its reply."""

    def __init__(self) -> None:
        #: Sleep this long after the next request was published, then poll for `poll_ns`; 0: sleep until the doorbell rings.
        self.sleep_ns = 0
        self.poll_ns = 0
        self._latest: deque[int] = deque(maxlen=_RECENT)
        self._first_ns = 0  # when the earliest reply of the plan comes
        self._lead_ns = _FIRST_LEAD_NS
        self._misses = 0
        self._doubt, self._doubted = _FIRST_DOUBT, 0

    def note(self, service_ns: int, polled_ns: int = 0) -> None:
        """Learn that a reply came `service_ns` after its request was published.

        `polled_ns` is how long the client polled for it after its sleep: negative if it did so in vain, 0 if the doorbell ended
        its sleep.
        """
        if self.sleep_ns:
            self._judge(service_ns, polled_ns)
        latest = self._latest
        latest.append(service_ns)
        self.sleep_ns = self.poll_ns = 0
        if self._doubted:
            self._doubted -= 1
            return
        if len(latest) < _RECENT:
            return
        # Not kept in order from one reply to the next: a signal handler that raises between two steps would leave it wrong.
        _, first_ns, *_, last_ns, _ = sorted(latest)
        spread_ns = last_ns - first_ns + _TAIL_NS
        lead_ns = min(self._lead_ns, min(LONGEST_NS, first_ns // _PART) - spread_ns)
        if lead_ns >= _LEAST_LEAD_NS and LEAST_NS <= first_ns <= MOST_NS:
            self._first_ns = first_ns
            self.sleep_ns, self.poll_ns = first_ns - lead_ns, lead_ns + spread_ns

    def _judge(self, service_ns: int, polled_ns: int) -> None:
        """Learn from what became of the plan."""
        if polled_ns < 0:
            self._misses += 1
            if self._misses == _MISSES:
                self._misses, self._doubted = 0, self._doubt
                self._doubt = min(2 * self._doubt, _LONGEST_DOUBT)
            return
        if polled_ns:
            self._misses, self._doubt = 0, _FIRST_DOUBT
            ahead_ns = self._first_ns - (service_ns - polled_ns)
        elif self.sleep_ns <= service_ns < self.sleep_ns + self.poll_ns:
            ahead_ns = 0  # the timer ended late
        else:
            return  # nothing was planned for this reply
        if ahead_ns < _LITTLE_NS:
            self._lead_ns = min(self._lead_ns + _EARLIER_NS, _MOST_LEAD_NS)
        elif ahead_ns > _LONG_NS:
            self._lead_ns = max(self._lead_ns - _LATER_NS, _LEAST_LEAD_NS)
