"""Evidence against clients whose requests crash engines: suspicion and eviction.

This is poison-message handling. A request that an engine was running when it died is evidence, whatever is answered before
or after it. It is kept for a window of time and outlives the connection, so that neither a good request between two bad
ones nor a new connection, nor a new process of the same user, resets the count. A suspected client's requests run alone
and after those of the others; at the third death it is evicted.

>>> from types import SimpleNamespace as Process
>>> killer, other = Process(uid=1000, pid=7, started=1), Process(uid=1000, pid=8, started=2)
>>> deaths = Deaths()
>>> deaths.note([(killer, 90.0)], 100.0)     # it attached at 90
>>> deaths.suspicion(killer, 90.0, 110.0)    # for 50 s more, and alone to blame
Suspicion(left_s=50.0, blamed=True)
>>> deaths.suspicion(other, 90.0, 110.0)     # it attached before that death and had no part in it
>>> deaths.suspicion(other, 105.0, 110.0)    # it attached afterwards, perhaps in place of the other
Suspicion(left_s=50.0, blamed=True)
>>> deaths.note([(killer, 90.0)], 200.0), deaths.verdict(killer, 200.0), deaths.note([(killer, 90.0)], 300.0)
(None, None, None)
>>> deaths.verdict(killer, 300.0)
Verdict(reason='its requests crashed the engine 3 times within 10 minutes', whole_user=False)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from ..ipc.messages import Suspicion

#: Deaths count for this long.
WINDOW_S = 600.0
#: From this many deaths within the window on a client is evicted.
DEATHS = 3
#: A client is clear again after this long without a death.
CLEAR_S = 60.0
#: Deaths that are kept; no service starts more engines within the window.
_MAX_DEATHS = 4096


class Process(Protocol):
    """A client's process, as the kernel names it; `started` tells two with the same number apart."""

    @property
    def uid(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def started(self) -> int: ...


@dataclass(frozen=True)
class Verdict:
    """Why a client is evicted, and whether its whole user is."""

    reason: str
    whole_user: bool


_Key = tuple[int, int, int]


@dataclass
class _Death:
    at_s: float
    #: The processes whose requests were running; of several, none can be blamed.
    processes: set[_Key]
    #: The process attached after an earlier death that is held against its user.
    by_newcomer: bool

    def is_of_user(self, uid: int) -> bool:
        """Report whether a process of this user, and no other, caused it."""
        return len(self.processes) == 1 and all(key[0] == uid for key in self.processes)


class Deaths:
    """Deaths of engines within the window that clients caused."""

    def __init__(self, own_uids: Collection[int] = ()) -> None:
        """`own_uids`: users that all robots of a machine may share. A death counts against another of their processes
        only if that process attached afterwards.
        """
        self._own_uids = own_uids
        self._deaths: list[_Death] = []

    def note(self, clients: Iterable[tuple[Process, float]], now_s: float) -> None:
        """Record a death of an engine that ran requests of these clients, each with the time at which it attached."""
        attached_s = {_key(process): at_s for process, at_s in clients}
        keys = set(attached_s)
        recent = [death for death in self._deaths if now_s - death.at_s < WINDOW_S]
        newcomer = False
        if len(keys) == 1:
            (one,) = keys
            for death in recent:
                # This clears the others that had a request in the same batch earlier.
                if one in death.processes:
                    death.processes.intersection_update(keys)
            newcomer = any(death.is_of_user(one[0]) and death.at_s <= attached_s[one] for death in recent)
        self._deaths = [*recent[-_MAX_DEATHS + 1 :], _Death(now_s, keys, newcomer)]

    def suspicion(self, process: Process, attached_s: float, now_s: float) -> Suspicion | None:
        """Return the suspicion against a client that attached then, or None."""
        key = _key(process)
        recent = [death for death in self._deaths if now_s - death.at_s < CLEAR_S]
        own = [death for death in recent if key in death.processes]
        # A process that attaches after a death that its user caused may be the same program, started again.
        held_against = own or [death for death in recent if death.is_of_user(process.uid) and death.at_s <= attached_s]
        if not held_against:
            return None
        return Suspicion(
            held_against[-1].at_s + CLEAR_S - now_s, any(len(death.processes) == 1 for death in held_against)
        )

    def verdict(self, process: Process, now_s: float) -> Verdict | None:
        """Return the verdict on a process that, itself or with others of its user, crashed too many engines, or None."""
        recent = [death for death in self._deaths if now_s - death.at_s < WINDOW_S]
        within = f"within {WINDOW_S / 60:g} minutes"
        own = sum(death.processes == {_key(process)} for death in recent)
        if own >= DEATHS:
            return Verdict(f"its requests crashed the engine {own} times {within}", whole_user=False)
        uid = process.uid
        of_user = sum(death.is_of_user(uid) and (death.by_newcomer or uid not in self._own_uids) for death in recent)
        if of_user >= DEATHS:
            reason = f"requests of processes of uid {uid} crashed the engine {of_user} times {within}"
            return Verdict(reason, whole_user=True)
        return None

    def __len__(self) -> int:
        return len(self._deaths)


def _key(process: Process) -> _Key:
    return process.uid, process.pid, process.started
