"""Attaching and detaching of channels, with their memory mapped and released in pieces.

Requests of other clients are served between two pieces. No other message of the supervisor is handled meanwhile, so
that messages keep their order.
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

#: Time limit for the pieces between two requests, which is how long a request may wait for another client's channel.
TURN_NS = 100_000


class Channels:
    """Attaches and detaches channels; the loop calls `go_on` repeatedly while `busy`."""

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
        """Remember the collaborators; `left` holds channels that `loop` no longer serves and that are to be closed.

        `mapped` and `state` are the factories of a channel's objects. `broken` is called for a channel that cannot
        be served, `attached` after one was attached.
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
        """Begin to attach a new channel or a channel's next generation; it is served once its memory is mapped."""
        assert self._under_way is None, "one after the other"
        self._under_way = self._attach(message, fds)

    def detach(self, number: int) -> None:
        """Stop serving the channel of a client that has left."""
        self._loop.client_left(number)

    @property
    def busy(self) -> bool:
        """Whether an attach or a release of memory is unfinished."""
        return self._under_way is not None or bool(self._left)

    def go_on(self) -> None:
        """Do the next pieces of work, or all of them if this engine does not serve."""
        until_ns = time.monotonic_ns() + self._turn_ns
        while self.busy:
            if self._under_way is None:
                self._under_way = _given_back(self._left.popleft())
            for _ in self._under_way:
                if self._loop.serving and time.monotonic_ns() > until_ns:
                    return
            self._under_way = None

    def _attach(self, message: Attach, fds: Sequence[int]) -> Iterator[None]:
        loop, channel_info, deferred = self._loop, message.channel_info, message.deferred
        number = channel_info.identity.channel
        mapped: MappedChannel | None = None
        handed_over = False
        try:
            state = loop.states.get(number)
            if state is not None and state.deferred_replies and not loop.serving:
                # This engine no longer serves, but it still has to deliver the channel's deferred replies.
                state.resume(self._mapped(channel_info, [os.dup(fd) for fd in fds]), deferred, serving=False)
            mapped = self._mapped(channel_info, fds)
            yield from mapped.prefault()
            # Looked up again: the loop may have given the channel up meanwhile.
            state = loop.states.get(number)
            handed_over = True
            if state is not None and loop.serving:
                mine, mapped = mapped, None
                loop.move(state, mine, deferred)
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
            # Either the channel is gone already (its client left, or moved on to another generation), or it is not
            # the one that the supervisor made. It is not served but reported; the supervisor decides whether that
            # still matters. The state of an earlier generation stays, with its deferred replies: the next one goes on with it.
            if handed_over:
                loop.remove(number)
            detail = f"cannot be opened: {error}"
            if isinstance(error, BrokenChannel):
                self._broken(channel_info, str(error), detail=detail)
            else:  # a client must not read object names or the kernel's error text
                self._broken(channel_info, "its channel cannot be opened", blame=False, detail=detail)
        finally:
            if mapped is not None:
                mapped.close()


def _given_back(channel: EngineChannel) -> Iterator[None]:
    yield from channel.release_pages()
    channel.close()
