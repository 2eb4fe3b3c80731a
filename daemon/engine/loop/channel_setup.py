"""The engine's channels as the supervisor orders them, each given its memory and rid of it a piece at a time.

Requests of other clients are served between two pieces. Nothing else that the supervisor says is heard meanwhile, so that
its messages keep their order.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from shmserve.channel import ChannelInfo, EngineChannel
from shmserve.errors import ShmServeError

from ...ipc.messages import Attach
from ...ipc.stats import ChannelWord, Stats
from ..channel.channel_state import BrokenChannel, ChannelState
from ..channel.mapped_channel import MappedChannel
from .loop import EngineLoop

#: Of pieces between two requests; what a request may wait for the channel of another client.
TURN_NS = 100_000


class Channels:
    """Attaches and detaches; `go_on` does the work, again and again while `busy`."""

    def __init__(
        self,
        loop: EngineLoop,
        stats: Stats,
        left: deque[EngineChannel],
        mapped: Callable[[ChannelInfo, Sequence[int]], MappedChannel],
        state: Callable[[MappedChannel, Attach], ChannelState],
        broken: Callable[..., None],
        attached: Callable[[], None],
        *,
        turn_ns: int = TURN_NS,
    ) -> None:
        """`left` holds channels that `loop` no longer serves, to be closed.

        `mapped` and `state` make the objects that a message asks for. `broken` is called for a channel that cannot
        be served, `attached` after one that can.
        """
        self._loop = loop
        self._stats = stats
        self._mapped = mapped
        self._channel_state = state
        self._broken = broken
        self._attached = attached
        self._turn_ns = turn_ns
        self._under_way: Iterator[None] | None = None
        self._left = left

    def attach(self, message: Attach, fds: Sequence[int]) -> None:
        """A new channel, or the next generation of one: served once its memory is there."""
        assert self._under_way is None, "one after the other"
        self._under_way = self._attach(message, fds)

    def detach(self, number: int) -> None:
        """The client is gone: its channel is not served from now on."""
        self._loop.client_left(number)

    @property
    def busy(self) -> bool:
        """Whether something is left to do."""
        return self._under_way is not None or bool(self._left)

    def go_on(self) -> None:
        """Do some of what is left, or all of it if no client is served meanwhile."""
        until_ns = time.monotonic_ns() + self._turn_ns
        while self.busy:
            if self._under_way is None:
                self._under_way = _given_back(self._left.popleft())
            for _ in self._under_way:
                if self._loop.serving and time.monotonic_ns() > until_ns:
                    return
            self._under_way = None

    def _attach(self, message: Attach, fds: Sequence[int]) -> Iterator[None]:
        loop, channel_info, carried = self._loop, message.channel_info, message.carried
        number = channel_info.identity.channel
        mapped: MappedChannel | None = None
        try:
            state = loop.states.get(number)
            if state is not None and state.held and not loop.serving:
                # It no longer serves, but these replies are this engine's to give.
                state.move(self._mapped(channel_info, [os.dup(fd) for fd in fds]), carried, serving=False)
            mapped = self._mapped(channel_info, fds)
            yield from mapped.prefault()
            # Looked for again: it may have been given up meanwhile.
            state = loop.states.get(number)
            if state is not None and loop.serving:
                mine, mapped = mapped, None
                loop.move(state, mine, carried)
            else:
                loop.remove(number)
                self._stats.clear_channel(number)
                state = self._channel_state(mapped, message)
                mapped = None
                loop.add(state)
            self._stats.words[self._stats.channel_index(number) + ChannelWord.GENERATION] = (
                channel_info.identity.generation
            )
            self._attached()
        except (ShmServeError, OSError, BrokenChannel) as error:
            # Gone already (its client left, or moved on to another generation), or not what the supervisor
            # made: not served, and told; the supervisor knows whether that still matters.
            loop.remove(number)
            detail = f"cannot be opened: {error}"
            if isinstance(error, BrokenChannel):
                self._broken(channel_info, str(error), detail=detail)
            else:  # its names, or what the kernel said, are nothing that a client should read
                self._broken(channel_info, "its channel cannot be opened", blame=False, detail=detail)
        finally:
            if mapped is not None:
                mapped.close()


def _given_back(channel: EngineChannel) -> Iterator[None]:
    yield from channel.release_pages()
    channel.close()
