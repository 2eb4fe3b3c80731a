"""Both ends of a sealed channel in this process: a client's parts on the one, a scripted engine on the other."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any, cast, final

from shmserve.channel import ChannelInfo, ClientChannel, EngineChannel
from shmserve.client.capacity import SlotCapacity
from shmserve.client.client_guard import ClientGuard, ParkingLot
from shmserve.client.connection import Connection
from shmserve.client.connector import Connector
from shmserve.client.pending import Pending
from shmserve.client.request_table import RequestTable
from shmserve.codec import Decoder, Encoder
from shmserve.directories import ServicePlace
from shmserve.errors import ServiceRestarted
from shmserve.layout import Geometry
from shmserve.protocol import Status
from shmserve.ring import RequestHead
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity
from shmserve.spin import SpinBudget

_GEOMETRY = Geometry(slots=4, metadata_bytes=4096, payload_bytes=4096)


class FakeConnection:
    """Stands in for a `Connection` on the channel; the test says whether its daemon is there."""

    def __init__(self, channel: ClientChannel) -> None:
        self.channel = channel
        self.decoder = Decoder()
        self.model: dict[str, Any] | None = {"version": "7", "stateful": False, "contract": None}
        self.asked_ns = time.monotonic_ns()
        self.trusted = self.resizing = self.closed = self.gone = False
        self.closes = 0

    def is_peer_closed(self) -> bool:
        return self.gone

    def close_error(self) -> ServiceRestarted:
        return ServiceRestarted("the daemon went away")

    def shutdown(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.shutdown()
        self.closes += 1


@final
class ChannelEnds:
    """A channel, an engine's end that answers when the test says, and the parts that every client has."""

    def __init__(self) -> None:
        self._sealed = SealedChannelFds()
        info = ChannelInfo(Identity(1, 0, 1), None)
        self.channel = ClientChannel(info, self._sealed.create(info.identity, _GEOMETRY, _GEOMETRY))
        self.engine = EngineChannel(info, [os.dup(descriptor) for descriptor in self._sealed.engine_ends()])
        self.connection = FakeConnection(self.channel)
        self.guard, self.lot, self.capacity = ClientGuard("arm"), ParkingLot(), SlotCapacity(4)
        self.connector = Connector(self.guard, cast(ServicePlace, None), self.capacity, self.lot)
        self.table = RequestTable("arm", self.capacity)
        self.budget = SpinBudget(0)
        self._observations, self._actions = Decoder(), Encoder()

    def attach(self) -> None:
        """Give the parts the connection."""
        self.connector.connection = cast(Connection, self.connection)
        self.table.begin(self.connection, stateful=False)

    def publish(self, pending: Pending, encoder: Encoder, observation: Any) -> int:
        """Send a request by the slow path's steps."""
        sequence = self.table.claim(pending)
        encoded = encoder.encode(observation, self.channel.requests.memory(sequence))
        now_ns = time.monotonic_ns()
        self.channel.requests.publish((sequence, 1, 0, pending.deadline_ns, 0, 0, now_ns, *encoded[:3], 0, 0))
        return sequence

    def request(self, sequence: int) -> tuple[RequestHead, Any]:
        """Read a published request, as the engine does."""
        head = self.engine.requests.head(sequence)
        assert head is not None
        memory = self.engine.requests.memory(sequence)
        return head, self._observations.decode(memory, head.schema, head.metadata_bytes, head.payload_bytes)

    def answer(
        self,
        sequence: int,
        action: Any,
        status: Status = Status.OK,
        version: int = 7,
        flags: int = 0,
        infer_ns: int = 3,
    ) -> None:
        """Publish a reply and ring, as the engine does."""
        encoded = self._actions.encode(action, self.engine.replies.memory(sequence))
        self.engine.replies.complete(sequence, int(status), flags, *encoded[:3], version, 1, 2, infer_ns, 4)
        self.engine.reply_bell.ring()

    def __enter__(self) -> ChannelEnds:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()
        self.channel.close()
        self._sealed.close()


def new_pending(owner: Any = None, deadline_ns: int = 1 << 62, loan_thread: int = 0) -> Pending:
    """A request that was not sent."""
    return Pending(owner, time.monotonic_ns(), deadline_ns, loan_thread)
