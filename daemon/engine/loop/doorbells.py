"""Doorbells that wake the engine: one shared by all clients, or one for each client."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from shmserve.doorbell import Listener

from ..channel.channel_state import ChannelState

#: Most rings taken in one turn of the loop: two billion stale ones must not block it.
_MAX_RINGS = 1024


class Doorbells(Protocol):
    """The loop's interface to the doorbells of either transport."""

    #: Whether `take` returns the channels that rang. If not, the wait itself uses up the ring that ended it.
    names_channels: bool

    def watch(self, state: ChannelState) -> None:
        """Listen to this client's doorbell from now on."""

    def forget(self, state: ChannelState) -> None:
        """Stop listening to this client, before its channel is closed; do nothing if it is not watched."""

    def count(self) -> int:
        """Return roughly how many rings are pending; above zero if there is any."""

    def take(self) -> Collection[ChannelState] | None:
        """Use up the pending rings, or many of them; return the channels that rang, or None if they are not known."""

    def wait(self, timeout_ns: int) -> bool:
        """Sleep until a ring, a message or a signal arrives, or the time is over; return whether a client rang."""

    def unmute(self, now_ns: int) -> None:
        """Listen again to clients that were muted for long enough; called from time to time."""

    def close(self) -> None:
        """Stop listening; may be called twice."""


class SharedDoorbell:
    """The semaphore of transport `named`, which all clients ring."""

    names_channels = False

    def __init__(self, doorbell: Listener) -> None:
        self._try_take = doorbell.try_take
        self.count = doorbell.tokens
        self.wait = doorbell.wait
        self.close = doorbell.close

    def watch(self, state: ChannelState) -> None:
        pass

    def forget(self, state: ChannelState) -> None:
        pass

    def take(self) -> Collection[ChannelState] | None:
        try_take = self._try_take
        taken = 0
        while taken < _MAX_RINGS and try_take():
            taken += 1
        return None if taken else ()

    def unmute(self, now_ns: int) -> None:
        pass
