"""Ban list of evicted clients.

An evicted process is banned for `ban_s`, by its user, number and start time, so that one broken robot does not lock out the
others of its user. A user is banned as a whole once several of its processes were evicted, because a program that is
started again comes back under a new number. The daemon's own user is exempt from that rule for damaged channels, as its
processes could do worse than attach; it is not exempt where its processes crashed engines one after the other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from ..varlink.peer import Peer

#: Evicted processes of one user, at a time, from which on the user is banned.
_PROCESSES_OF_A_USER = 3
#: Bans that are kept, several times the number of clients that a service can have.
_MAX_BANS = 1024


@dataclass(frozen=True)
class _Ban:
    uid: int
    pid: int
    started: int
    whole_user: bool
    reason: str
    at_s: float


class Refusal(NamedTuple):
    """Why a process may not attach, and for how many seconds more."""

    message: str
    left_s: float


class Bans:
    """Bans of processes and of whole users."""

    def __init__(self) -> None:
        self._bans: list[_Ban] = []

    def add(self, peer: Peer, reason: str, now_s: float, *, whole_user: bool = False) -> None:
        """Ban an evicted client; `whole_user`: and every other process of its user."""
        self._bans.append(_Ban(peer.uid, peer.pid, peer.started, whole_user, reason, now_s))
        del self._bans[:-_MAX_BANS]

    def refusal(self, peer: Peer, for_s: float, now_s: float) -> Refusal | None:
        """Return the refusal of this process, with its reason for people, or None."""
        recent = [each for each in self._bans if each.uid == peer.uid and now_s - each.at_s < for_s]
        own = [each for each in recent if (each.pid, each.started) == (peer.pid, peer.started)]
        if own:
            return _refusal(f"it was evicted: {own[-1].reason}", own[-1], for_s, now_s)
        of_user = [each for each in recent if each.whole_user]
        if of_user:
            return _refusal(of_user[-1].reason, of_user[-1], for_s, now_s)
        if len({(each.pid, each.started) for each in recent}) >= _PROCESSES_OF_A_USER and peer.uid != os.getuid():
            message = f"{len(recent)} clients of uid {peer.uid} were evicted, the last because {recent[-1].reason}"
            return _refusal(message, recent[-1], for_s, now_s)
        return None

    def __len__(self) -> int:
        return len(self._bans)


def _refusal(message: str, ban: _Ban, for_s: float, now_s: float) -> Refusal:
    left_s = ban.at_s + for_s - now_s
    return Refusal(f"{message}; it may attach again in {left_s:.0f} s (ban_s = {for_s:g})", left_s)
