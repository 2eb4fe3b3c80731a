"""Channel of one client: a segment for each direction and two doorbells.

The supervisor creates it and hands out its description; the client and the serving engine open their
ends. How memory and doorbells are obtained is the transport: `named` has names in /dev/shm, for
clients that trust one another; `sealed` has descriptors that only the two sides hold.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .backend import same_cpu_writers
from .doorbell import Listener, NamedDoorbell, Ringer, create_doorbell, unlink_doorbell
from .errors import ProtocolMismatch
from .layout import Geometry
from .pipe_doorbell import PipeListener, PipeRinger, check_pipe
from .ring import ReplyReader, ReplyWriter, RequestReader, RequestWriter
from .segment import Identity, Segment, create_segment, unlink_segment


@dataclass(frozen=True)
class ChannelNames:
    """The names of the two segments and the two doorbells, of transport `named`."""

    requests: str
    replies: str
    request_bell: str
    reply_bell: str


@dataclass(frozen=True)
class ChannelInfo:
    """The description of a channel, as it crosses the control plane.

    Without names it is of transport `sealed`, and descriptors come with it.
    """

    identity: Identity
    names: ChannelNames | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ChannelInfo:
        names = fields["names"]
        return cls(Identity(**fields["identity"]), ChannelNames(**names) if names is not None else None)


def _named(channel_info: ChannelInfo) -> ChannelNames:
    assert channel_info.names is not None, "a channel of transport `sealed` has no names"
    return channel_info.names


def create_channel(
    channel_info: ChannelInfo, requests: Geometry, replies: Geometry, *, published: int = 0, group: bool = False
) -> None:
    """Create the segments and the reply bell of `channel_info` (the supervisor's part); all or nothing.

    `published` is the last sequence of the channel's earlier generation.

    With `group`, members of the daemon's group may open them: the requests to write, the replies to read.
    Raises OSError (ENOSPC) if /dev/shm has no room.
    """
    names = _named(channel_info)
    with contextlib.ExitStack() as undo:
        create_segment(names.requests, requests, channel_info.identity, 0o660 if group else 0o600, counter=published)
        undo.callback(unlink_segment, names.requests)
        create_segment(names.replies, replies, channel_info.identity, 0o640 if group else 0o600)
        undo.callback(unlink_segment, names.replies)
        create_doorbell(names.reply_bell, 0o660 if group else 0o600)
        undo.pop_all()


def unlink_channel(channel_info: ChannelInfo) -> None:
    """Remove the channel's names; open ends stay valid."""
    names = _named(channel_info)
    unlink_segment(names.requests)
    unlink_segment(names.replies)
    unlink_doorbell(names.reply_bell)


class ClientChannel:
    """The client's ends. `descriptors`, of transport `sealed`, are as `SealedChannelFds.create` gives them."""

    def __init__(
        self,
        channel_info: ChannelInfo,
        descriptors: Sequence[int] = (),
        before: ClientChannel | None = None,
        *,
        owners: Container[int] | None = None,
    ) -> None:
        """Take over `descriptors`. A later generation of a sealed channel keeps the doorbells of the one `before`.

        Raises ServiceUnavailable if the named objects are gone, ForeignService if they do not belong to one of these
        `owners` (None: any user), ProtocolMismatch if a descriptor cannot be mapped safely.
        """
        #: A later generation uses the doorbells; do not close them with this one.
        self.lends_bells = False
        with contextlib.ExitStack() as undo:
            rest = list(descriptors)
            undo.callback(_close_all, rest)
            _check_count(channel_info, rest, 2 if before is not None else 4)
            requests, replies = _open_segments(undo, channel_info, rest, writable=("requests",), owners=owners)
            self.request_bell: Ringer
            self.reply_bell: Listener
            if channel_info.names is not None:
                self.request_bell = bell = NamedDoorbell(channel_info.names.request_bell, owners)
                undo.callback(bell.close)
                self.reply_bell = NamedDoorbell(channel_info.names.reply_bell, owners)
            elif before is not None:
                self.request_bell, self.reply_bell = before.request_bell, before.reply_bell
                before.lends_bells = True
            else:
                self.request_bell = ringer = PipeRinger(rest[0])
                undo.callback(ringer.close)
                del rest[0]
                self.reply_bell = PipeListener(rest[0])
                del rest[0]
            _close_all(rest)
            undo.pop_all()
        self.requests = RequestWriter(requests)
        for memory in self.requests.memories:
            memory.wake = self.announce
        self.replies = ReplyReader(replies)

    def announce(self) -> None:
        """Wake the engine for a request that is being written, unless it would run on this processor instead of the writer."""
        if not same_cpu_writers(self.replies.pollers):
            self.request_bell.ring()

    def expect(self, expected_ns: int) -> None:
        """Tell the engine when the next request comes (CLOCK_MONOTONIC), and wake it if it sleeps.

        An engine that falls asleep at this very moment may miss both; the request wakes it then, as it would without this.
        """
        self.requests.say_expected(expected_ns)
        if self.replies.is_writer_asleep():
            self.request_bell.ring()

    def close(self) -> None:
        self.requests.close()
        self.replies.close()
        if not self.lends_bells:
            self.request_bell.close()
            self.reply_bell.close()


class EngineChannel:
    """The engine's ends. `descriptors`, of transport `sealed`, are as `SealedChannelFds.engine_ends` gives them."""

    def __init__(
        self, channel_info: ChannelInfo, descriptors: Sequence[int] = (), *, writable_requests: bool = False
    ) -> None:
        """Take over `descriptors`. With `writable_requests` the requests are mapped for writing, which nothing here does.

        The memory is mapped without pages; see `prefault`.
        """
        with contextlib.ExitStack() as undo:
            rest = list(descriptors)
            undo.callback(_close_all, rest)
            writable = ("requests", "replies") if writable_requests else ("replies",)
            _check_count(channel_info, rest, 4)
            requests, replies = _open_segments(undo, channel_info, rest, writable=writable, prefault=False)
            self.reply_bell: Ringer
            #: The pipe that this client rings; named channels share the service's request bell.
            self.request_pipe: int | None = None
            if channel_info.names is not None:
                self.reply_bell = NamedDoorbell(channel_info.names.reply_bell)
            else:
                check_pipe(rest[0], os.O_RDONLY)
                self.reply_bell = PipeRinger(rest[1])
                self.request_pipe = rest[0]
                del rest[:2]
            _close_all(rest)
            undo.pop_all()
        self.requests = RequestReader(requests)
        self.replies = ReplyWriter(replies)

    def prefault(self) -> Iterator[None]:
        """Fault in the memory, a piece at each step, before a request is served from it."""
        yield from self.requests.segment.prefault()
        yield from self.replies.segment.prefault()

    def release_pages(self) -> Iterator[None]:
        """Give the pages back, a piece at each step, before `close`."""
        yield from self.requests.segment.release_pages()
        yield from self.replies.segment.release_pages()

    def close(self) -> None:
        self.requests.close()
        self.replies.close()
        self.reply_bell.close()
        pipe, self.request_pipe = self.request_pipe, None
        if pipe is not None:
            os.close(pipe)


def _check_count(channel_info: ChannelInfo, descriptors: Sequence[int], expected: int) -> None:
    # A process at its descriptor limit receives fewer than were sent.
    if channel_info.names is None and len(descriptors) != expected:
        raise ProtocolMismatch(
            f"{len(descriptors)} descriptors came with a channel of transport 'sealed', not {expected}"
        )


def _open_segments(
    undo: contextlib.ExitStack,
    channel_info: ChannelInfo,
    descriptors: list[int],
    *,
    writable: Sequence[str],
    prefault: bool = True,
    owners: Container[int] | None = None,
) -> tuple[Segment, Segment]:
    """Map both directions; those not in `writable` for reading alone, so that each has one writer."""
    segments = []
    for direction in ("requests", "replies"):
        if channel_info.names is not None:
            segment = Segment.open(
                getattr(channel_info.names, direction), writable=direction in writable, prefault=prefault, owners=owners
            )
        else:
            descriptor = descriptors.pop(0)
            try:
                segment = Segment.from_descriptor(
                    descriptor, writable=direction in writable, prefault=prefault, sealed=True
                )
            finally:
                os.close(descriptor)
        undo.callback(segment.close)
        if segment.identity != channel_info.identity:
            raise ProtocolMismatch(f"expected the segment {channel_info.identity}, got {segment.identity}")
        segments.append(segment)
    return segments[0], segments[1]


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
