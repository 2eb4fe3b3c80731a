"""Token bucket: a burst at once, then a steady rate.

Every rate limit of the service is one of these: log lines, attaches, requests, and log lines that a peer causes.

>>> bucket = TokenBucket(per_s=2, burst=3, now_ns=0)
>>> [bucket.take(0) for _ in range(4)]
[True, True, True, False]
>>> bucket.take(499_999_999), bucket.take(500_000_000)
(False, True)
>>> bucket.spend(2)                                    # more than there is: it is owed
>>> bucket.wait_ns(500_000_000), bucket.take(2_000_000_000)
(1500000000, True)
>>> [bucket.take(90_000_000_000) for _ in range(4)]    # no more than the burst is kept
[True, True, True, False]
"""

from __future__ import annotations

import math

#: A token is counted in billionths, so that a rate times nanoseconds is a number of these.
_TOKEN = 1_000_000_000


class TokenBucket:
    """Full at the start. `per_s` and `burst` may be changed at any time."""

    __slots__ = ("_left", "burst", "per_s", "refilled_ns")

    def __init__(self, per_s: float, burst: float, now_ns: int) -> None:
        self.per_s = per_s
        self.burst = burst
        self._left = burst * _TOKEN
        #: When it was last looked at.
        self.refilled_ns = now_ns

    def take(self, now_ns: int) -> bool:
        """Take a token if there is one."""
        left = min(self.burst * _TOKEN, self._left + (now_ns - self.refilled_ns) * self.per_s)
        self.refilled_ns = now_ns
        is_there = left >= _TOKEN
        self._left = left - _TOKEN if is_there else left
        return is_there

    def wait_ns(self, now_ns: int) -> int:
        """Take a token: 0 if there was one, else how long until there is."""
        return 0 if self.take(now_ns) else math.ceil((_TOKEN - self._left) / self.per_s)

    def spend(self, tokens: int) -> None:
        """Take this many, whatever is left."""
        self._left -= tokens * _TOKEN
