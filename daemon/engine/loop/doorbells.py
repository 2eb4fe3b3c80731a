"""What wakes the engine: one doorbell that all clients ring, or one of each client's own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from shmserve.doorbell import Listener

from ..channel.channel_state import ChannelState

#: Tokens taken in one turn of the loop: two billion stale ones must not hold it.
_MAX_RINGS = 1024


class Doorbells(Protocol):
    """What the loop listens to, of either transport."""

    #: Whether `take` knows who rang. If not, the token that ends a wait is used up by that.
    names_channels: bool

    def watch(self, state: ChannelState) -> None:
        """Listen to this client, too."""

    def forget(self, state: ChannelState) -> None:
        """Before the channel is closed; one that is not watched is no error."""

    def count(self) -> int:
        """How many tokens wait, roughly; above zero if there is any."""

    def take(self) -> Collection[ChannelState] | None:
        """Use up the tokens that are there, or many; the channels that rang. None: nobody knows which."""

    def wait(self, timeout_ns: int) -> bool:
        """Sleep until a token came, a message or a signal arrived, or the time is over. True: somebody rang."""

    def unmute(self, now_ns: int) -> None:
        """Called every now and then: listen again to whoever was not listened to for a while."""

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
