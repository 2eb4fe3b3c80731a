"""Share of the supervisor's time that the calls of one user may take.

A user whose calls took long waits nine times as long before the next one, whatever number of connections it has.

>>> share = TimeShare()
>>> share.charge(1001, spent_s=0.5, now_s=100.0)
>>> share.wait_s(1001, now_s=100.5), share.wait_s(1002, now_s=100.5), share.wait_s(1001, now_s=104.5)
(4.0, 0.0, 0.0)
"""

from __future__ import annotations

_TIMES_AS_LONG = 9
#: Users remembered at most; those who need not wait are forgotten first.
_MAX_USERS = 1024


class TimeShare:
    """From when on each user may call again."""

    def __init__(self) -> None:
        self._free_s: dict[int, float] = {}

    def wait_s(self, uid: int, now_s: float) -> float:
        """Return how long this user has to wait, 0 for not at all; a second call of the user may come first."""
        return max(0.0, self._free_s.get(uid, 0.0) - now_s)

    def charge(self, uid: int, spent_s: float, now_s: float) -> None:
        """Note the duration of a call of this user that ends now."""
        if len(self._free_s) >= _MAX_USERS:
            self._free_s = {each: free_s for each, free_s in self._free_s.items() if free_s > now_s}
        self._free_s[uid] = now_s + _TIMES_AS_LONG * spent_s
