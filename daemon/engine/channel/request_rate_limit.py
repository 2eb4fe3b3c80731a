"""Token bucket per user for requests, if the operator set a limit.

>>> limit = Rates(2).of(1001)
>>> limit is Rates(None).of(1001)
False
>>> [limit.take(0), limit.take(0), limit.take(0)]     # a second's worth at once
[True, True, False]
>>> limit.take(499_999_999), limit.take(500_000_000)  # then one every half second
(False, True)
>>> limit.refusal
'max_rate_per_user is 2 requests a second, and uid 1001 sends more'
"""

from __future__ import annotations

from ...token_bucket import TokenBucket


class Rate:
    """One user's token bucket, shared by all of the user's channels; it holds a second's worth of requests."""

    def __init__(self, uid: int, per_s: float) -> None:
        #: Takes a token at a time (ns); returns whether one more request may run.
        self.take = TokenBucket(per_s, burst=max(1.0, per_s), now_ns=0).take
        self.refusal = f"max_rate_per_user is {per_s:g} requests a second, and uid {uid} sends more"


class Rates:
    """Token buckets by user; they outlive a user's channels, so that attaching again does not refill one."""

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._users: dict[int, Rate] = {}

    def of(self, uid: int) -> Rate | None:
        """Return the user's token bucket, or None without a limit."""
        if self._per_s is None:
            return None
        rate = self._users.get(uid)
        if rate is None:
            rate = self._users[uid] = Rate(uid, self._per_s)
        return rate

    def change(self, per_s: float | None) -> None:
        """Change the limit; the caller must then fetch every user's token bucket again."""
        self._per_s = per_s
        self._users.clear()
