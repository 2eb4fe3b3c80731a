"""Token bucket per user for new channels.

A channel costs the supervisor memory to clear and the engine memory to map, both between other clients' requests.
A user may have four for each channel that it can hold at once, so that all its robots start and grow together, and
then `max_attach_rate_per_user` a second. Large ones cost more.

>>> rates = AttachRateLimit()
>>> [rates.wait_s(1001, 2.0, burst=3, now_s=100.0) for _ in range(4)]   # three at once, then two a second
[0.0, 0.0, 0.0, 0.5]
>>> rates.wait_s(1001, 2.0, burst=3, now_s=100.5), rates.wait_s(1002, 2.0, burst=3, now_s=100.0)
(0.0, 0.0)
>>> rates.charge(1002, 48 << 20)                                        # as much as three more
>>> rates.wait_s(1002, 2.0, burst=3, now_s=100.0)
1.0
"""

from __future__ import annotations

from ..token_bucket import TokenBucket

#: This many bytes of a channel cost as much as another channel.
_BYTES_EACH = 16 << 20
#: Users remembered at most; those whose bucket is full again are forgotten first.
_MAX_USERS = 1024


class AttachRateLimit:
    """The allowances by user."""

    def __init__(self) -> None:
        self._users: dict[int, TokenBucket] = {}

    def wait_s(self, uid: int, per_s: float, *, burst: int, now_s: float) -> float:
        """Take one; 0 if there was one, else how long until there is."""
        now_ns = int(now_s * 1e9)
        bucket = self._users.get(uid)
        if bucket is None:
            if len(self._users) >= _MAX_USERS:
                since_ns = now_ns - int(burst / per_s * 1e9)
                self._users = {each: other for each, other in self._users.items() if other.refilled_ns > since_ns}
            bucket = self._users[uid] = TokenBucket(per_s, burst, now_ns)
        bucket.per_s, bucket.burst = per_s, burst
        return bucket.wait_ns(now_ns) / 1e9

    def charge(self, uid: int, size: int) -> None:
        """Note that a channel of `size` bytes was given, whatever is left: it may be owed."""
        self._users[uid].spend(size // _BYTES_EACH)
