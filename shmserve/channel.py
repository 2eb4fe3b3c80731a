"""One client's lane: a segment for each direction and two doorbells.

The supervisor creates it and hands out its description; the client and the serving engine open their
ends. Both doorbells are hints: the request bell is shared by all clients of the service, the reply
bell is this client's alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .doorbell import Doorbell, NamedDoorbell, create_doorbell, unlink_doorbell
from .errors import ProtocolMismatch
from .layout import Geometry
from .ring import ReplyReader, ReplyWriter, RequestReader, RequestWriter
from .segment import Identity, Segment, create_segment, unlink_segment


@dataclass(frozen=True)
class Lane:
    """The description of a channel, as it crosses the control plane."""

    identity: Identity
    requests: str  # names of the two segments and the two doorbells
    replies: str
    request_bell: str
    reply_bell: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Lane:
        identity = Identity(**fields["identity"])
        return cls(identity, fields["requests"], fields["replies"], fields["request_bell"], fields["reply_bell"])


def create_lane(lane: Lane, requests: Geometry, replies: Geometry, *, published: int = 0, group: bool = False) -> None:
    """Create the segments and the reply bell of `lane` (the supervisor's part); all or nothing.

    `published` is the last sequence of the channel's earlier generation.

    With `group`, members of the daemon's group may open them: the requests to write, the replies to read.
    Raises OSError (ENOSPC) if /dev/shm has no room.
    """
    with contextlib.ExitStack() as undo:
        create_segment(lane.requests, requests, lane.identity, 0o660 if group else 0o600, counter=published)
        undo.callback(unlink_segment, lane.requests)
        create_segment(lane.replies, replies, lane.identity, 0o640 if group else 0o600)
        undo.callback(unlink_segment, lane.replies)
        create_doorbell(lane.reply_bell, 0o660 if group else 0o600)
        undo.pop_all()


def unlink_lane(lane: Lane) -> None:
    """Remove the lane's names; whoever has them open keeps them."""
    unlink_segment(lane.requests)
    unlink_segment(lane.replies)
    unlink_doorbell(lane.reply_bell)


class ClientChannel:
    """The client's ends."""

    def __init__(self, lane: Lane) -> None:
        with contextlib.ExitStack() as undo:
            requests = Segment.open(lane.requests, writable=True)
            undo.callback(requests.close)
            replies = Segment.open(lane.replies, writable=False)
            undo.callback(replies.close)
            _check_identity(lane, requests, replies)
            self.request_bell: Doorbell = NamedDoorbell(lane.request_bell)
            undo.callback(self.request_bell.close)
            self.reply_bell: Doorbell = NamedDoorbell(lane.reply_bell)
            undo.pop_all()
        self.requests = RequestWriter(requests)
        self.replies = ReplyReader(replies)

    def close(self) -> None:
        self.requests.close()
        self.replies.close()
        self.request_bell.close()
        self.reply_bell.close()


class EngineChannel:
    """The engine's ends; the request bell is the service's and not opened here."""

    def __init__(self, lane: Lane) -> None:
        with contextlib.ExitStack() as undo:
            # Mapped for reading alone: nothing in the engine may change what the client wrote.
            requests = Segment.open(lane.requests, writable=False)
            undo.callback(requests.close)
            replies = Segment.open(lane.replies, writable=True)
            undo.callback(replies.close)
            _check_identity(lane, requests, replies)
            self.reply_bell: Doorbell = NamedDoorbell(lane.reply_bell)
            undo.pop_all()
        self.requests = RequestReader(requests)
        self.replies = ReplyWriter(replies)

    def close(self) -> None:
        self.requests.close()
        self.replies.close()
        self.reply_bell.close()


def _check_identity(lane: Lane, *segments: Segment) -> None:
    for segment in segments:
        if segment.identity != lane.identity:
            raise ProtocolMismatch(f"the segment is {segment.identity}, the daemon spoke of {lane.identity}")
