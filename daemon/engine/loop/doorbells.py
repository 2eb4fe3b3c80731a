"""Doorbells that wake the engine: one that all clients ring, or one for each client."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from shmserve.doorbell import Listener

from ..channel.channel_state import ChannelState

#: Tokens taken in one turn of the loop: two billion stale ones must not hold it.
_MAX_RINGS = 1024


class Doorbells(Protocol):
    """Doorbells of all clients, of either transport."""

    #: Whether `take` knows which client rang. If not, the ring that ends a wait is used up by it.
    names_channels: bool

    def watch(self, state: ChannelState) -> None:
        """Listen to this client, too."""

    def forget(self, state: ChannelState) -> None:
        """Stop listening, before the channel is closed; may be called for one that is not watched."""

    def count(self) -> int:
        """Return roughly how many rings wait; above zero if there is any."""

    def take(self) -> Collection[ChannelState] | None:
        """Use up the rings that wait, up to a limit; return the channels that rang, or None if that cannot be known."""

    def wait(self, timeout_ns: int) -> bool:
        """Sleep until a ring, a message or a signal arrives, or the time is over. True: a client rang."""

    def unmute(self, now_ns: int) -> None:
        """Listen again to clients whose mute is over; called every now and then."""

    def close(self) -> None:
        """May be called twice."""


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
