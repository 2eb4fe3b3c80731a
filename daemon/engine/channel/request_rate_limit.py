"""How many requests a second each user's clients may have run, where the operator set a limit.

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


class Rate:
    """One user's allowance, which all channels of that user draw on; a second's worth of requests is kept."""

    def __init__(self, uid: int, per_s: float) -> None:
        self._each_ns = int(1e9 / per_s)
        self._most_ns = max(1_000_000_000, self._each_ns)
        self._allowed_ns = self._most_ns
        self._looked_ns = 0
        self.refusal = f"max_rate_per_user is {per_s:g} requests a second, and uid {uid} sends more"

    def take(self, now_ns: int) -> bool:
        """Whether one more request may run now."""
        self._allowed_ns = min(self._most_ns, self._allowed_ns + now_ns - self._looked_ns)
        self._looked_ns = now_ns
        if self._allowed_ns < self._each_ns:
            return False
        self._allowed_ns -= self._each_ns
        return True


class Rates:
    """The allowances by user. They outlive a user's channels: attaching again gives nothing new."""

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._users: dict[int, Rate] = {}

    def of(self, uid: int) -> Rate | None:
        """The user's allowance; None without a limit."""
        if self._per_s is None:
            return None
        rate = self._users.get(uid)
        if rate is None:
            rate = self._users[uid] = Rate(uid, self._per_s)
        return rate

    def change(self, per_s: float | None) -> None:
        """Another limit from now on; who holds a user's allowance asks for it again."""
        self._per_s = per_s
        self._users.clear()
