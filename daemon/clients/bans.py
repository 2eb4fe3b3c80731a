"""Clients that were evicted for what they wrote, and are not let back in for a while."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from ..varlink.peer import Peer

#: From so many processes of one user evicted at a time on, it is the user who is refused.
_PROCESSES_OF_A_USER = 3
#: Remembered at most; more than a service has clients several times over.
_MOST = 1024


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
    """A process is refused by itself, so that one broken robot does not lock its user's others out; a user whose
    processes keep coming back under new numbers, as a whole. The daemon's own user is not refused as a whole for what its
    processes wrote: they could do worse than attach. It is where one after the other of them crashed engines, for a
    program that is started again each time harms those that are attached.
    """

    def __init__(self) -> None:
        self._bans: list[_Ban] = []

    def add(self, peer: Peer, reason: str, now_s: float, *, whole_user: bool = False) -> None:
        """This client was evicted, and with it perhaps whatever its user starts from now on."""
        self._bans.append(_Ban(peer.uid, peer.pid, peer.started, whole_user, reason, now_s))
        del self._bans[:-_MOST]

    def refusal(self, peer: Peer, for_s: float, now_s: float) -> Refusal | None:
        """Why this process may not attach, for whom it may concern; None: it may."""
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
