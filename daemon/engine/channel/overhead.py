"""Limit for engine time outside the model: reading new structures, refusing and failing requests.

A client may take a sixteenth of the engine's time for these, with a burst. Past that its next request rests while other
clients use the service (the generic cell rate algorithm, with time spent in place of cells).

>>> spent = Overhead()
>>> spent.add(2_000_000, now_ns=0), spent.until_ns           # the first structures, in 2 ms: nothing rests
(None, 0)
>>> spent.add(4_000_000, now_ns=6_000_000), spent.until_ns   # 6 ms within the first 6 ms
(None, 16000000)
>>> overheads = Overheads(own_uid=1000)
>>> overheads.of(1001) is overheads.of(1001), overheads.of(1000) is overheads.of(1000)
(True, False)
"""

from __future__ import annotations

#: The reciprocal of a client's share of the time.
_TIMES = 16
#: The burst: 5 ms of overhead without a rest.
_BURST_NS = _TIMES * 5_000_000
#: The longest rest.
_MOST_NS = 1_000_000_000


class Overhead:
    """Overhead of one client, or of all clients of one user."""

    __slots__ = ("_paid_ns", "until_ns")

    def __init__(self) -> None:
        self._paid_ns = 0
        #: Until when the client's next request rests if others use the service; 0 without a rest.
        self.until_ns = 0

    def add(self, spent_ns: int, now_ns: int) -> None:
        paid_ns = max(self._paid_ns, now_ns) + _TIMES * spent_ns
        self._paid_ns = min(paid_ns, now_ns + _BURST_NS + _MOST_NS)
        until_ns = self._paid_ns - _BURST_NS
        self.until_ns = until_ns if until_ns > now_ns else 0


class Overheads:
    """Overhead by user, shared by all channels of one user, except for the daemon's user.

    It outlives the channels, so that attaching again does not reset it.
    """

    def __init__(self, own_uid: int) -> None:
        self._own_uid = own_uid
        self._users: dict[int, Overhead] = {}

    def of(self, uid: int) -> Overhead:
        """Return the overhead for a new channel of a user; channels of the daemon's user do not share one."""
        return Overhead() if uid == self._own_uid else self._users.setdefault(uid, Overhead())
