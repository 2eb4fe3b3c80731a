"""How often the processes of one user may be given a channel: a token bucket for each user.

A channel costs the supervisor memory to clear and the engine memory to map, both between other clients' requests.
A user may have four for each channel that it can hold at once, so that all its robots start and grow together, and
then `max_attach_rate_per_user` a second. Large ones cost more.

>>> rates = AttachRates()
>>> [rates.wait_s(1001, 2.0, burst=3, now_s=100.0) for _ in range(4)]   # three at once, then two a second
[0.0, 0.0, 0.0, 0.5]
>>> rates.wait_s(1001, 2.0, burst=3, now_s=100.5), rates.wait_s(1002, 2.0, burst=3, now_s=100.0)
(0.0, 0.0)
>>> rates.charge(1002, 48 << 20)                                        # as much as three more
>>> rates.wait_s(1002, 2.0, burst=3, now_s=100.0)
1.0
"""

from __future__ import annotations

#: So many bytes of a channel cost as much as another one.
_BYTES_EACH = 16 << 20
#: Users remembered at most; whoever has all its allowance again is forgotten first.
_MOST = 1024


class AttachRates:
    """The allowances by user."""

    def __init__(self) -> None:
        self._users: dict[int, tuple[float, float]] = {}  # what is left, and when that was so

    def wait_s(self, uid: int, per_s: float, *, burst: int, now_s: float) -> float:
        """Take one; 0 if there was one, else how long until there is."""
        left, at_s = self._users.get(uid, (float(burst), now_s))
        left = min(float(burst), left + (now_s - at_s) * per_s)
        waits_s = 0.0 if left >= 1 else (1 - left) / per_s
        if len(self._users) >= _MOST and uid not in self._users:
            self._users = {each: kept for each, kept in self._users.items() if kept[1] + burst / per_s > now_s}
        self._users[uid] = (left - 1 if waits_s == 0 else left), now_s
        return waits_s

    def charge(self, uid: int, size: int) -> None:
        """A channel of so many bytes was given, whatever is left: it may be owed."""
        left, at_s = self._users[uid]
        self._users[uid] = left - size // _BYTES_EACH, at_s
