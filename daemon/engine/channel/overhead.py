"""Engine time that clients take beside their inferences: reading new structures, refusing and failing requests.

Time of the model is what a service is for; this time has a share. A client may have a sixteenth of the time, and some
of it at once. Past that its next request rests while others use the service (the generic cell rate
algorithm, with time spent for cells).

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

#: A sixteenth of the time.
_TIMES = 16
#: As much is taken at once.
_BURST_NS = _TIMES * 5_000_000
#: No rest is longer, whatever was spent.
_MOST_NS = 1_000_000_000


class Overhead:
    """What one client has spent, or all clients of one user."""

    __slots__ = ("_paid_ns", "until_ns")

    def __init__(self) -> None:
        self._paid_ns = 0
        #: The client's next request rests until then, if others use the service; 0: it need not.
        self.until_ns = 0

    def add(self, spent_ns: int, now_ns: int) -> None:
        paid_ns = max(self._paid_ns, now_ns) + _TIMES * spent_ns
        self._paid_ns = min(paid_ns, now_ns + _BURST_NS + _MOST_NS)
        until_ns = self._paid_ns - _BURST_NS
        self.until_ns = until_ns if until_ns > now_ns else 0


class Overheads:
    """Of every user but the daemon's own: what its channels spend together, so that many of them have no more than one.

    They outlive the channels: attaching again gives nothing new.
    """

    def __init__(self, own_uid: int) -> None:
        self._own_uid = own_uid
        self._users: dict[int, Overhead] = {}

    def of(self, uid: int) -> Overhead:
        """Return the account of a new channel of this user. All robots may be of the daemon's user: each has a separate one."""
        return Overhead() if uid == self._own_uid else self._users.setdefault(uid, Overhead())
