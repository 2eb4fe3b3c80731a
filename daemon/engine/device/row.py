"""One request of a batch on a device."""

from __future__ import annotations

from typing import Any

from shmserve.ring import RequestHead

from ..channel.channel_state import ChannelState
from ..channel.mapped_channel import InPlacePayload


class Row:
    """Batch item: one staged request."""

    __slots__ = (
        "ahead",
        "clamped",
        "head",
        "in_place",
        "observation",
        "place",
        "queued_ns",
        "retried",
        "staged_ns",
        "state",
    )

    def __init__(self, state: ChannelState, head: RequestHead, queued_ns: int, *, ahead: bool, retried: bool) -> None:
        self.state = state
        self.head = head
        self.queued_ns = queued_ns
        self.ahead = ahead
        self.retried = retried
        self.observation: Any = None
        #: Index of its row in the arena. If the request leaves the staged batch, its row stays empty.
        self.place = 0
        self.staged_ns = 0
        self.clamped = False
        #: The slot's memory, if the policy reads the observation there.
        self.in_place: InPlacePayload | None = None
