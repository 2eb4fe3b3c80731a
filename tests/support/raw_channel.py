"""A client that writes whatever it likes into its channel: how a broken or a malicious robot is played."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any, final

from shmserve.client.capacity import SlotCapacity
from shmserve.client.connection import Connection
from shmserve.codec import Decoder, Encoded, Encoder
from shmserve.layout import number_of, sequence_of
from shmserve.protocol import Flag, Kind
from shmserve.ring import ReplyHead, RequestHead
from tests.support.daemon_process import Daemon, wait_until


@final
class RawChannel:
    """The client's ends of a channel, without the client that keeps to the protocol."""

    def __init__(self, daemon: Daemon, *, slots: int = 4) -> None:
        before = set(daemon.names_in_shm())
        self.attachment = Connection.open(daemon.name, daemon.service_dir, SlotCapacity(slots), 10.0)
        #: The names that the daemon made for it, of transport `named`.
        self.names = sorted(set(daemon.names_in_shm()) - before)
        self.encoder = Encoder(allow_pickle=True)
        self.requests = self.attachment.channel.requests
        self.replies = self.attachment.channel.replies

    def head(self, tree: Any, sequence: int | None = None) -> RequestHead:
        """Write `tree` into the slot of the next sequence (or of this one); returns the head that belongs to it."""
        if sequence is None:
            sequence = sequence_of(number_of(self.requests.published()) + 1, 0)
        encoded = self.encoder.encode(tree, self.requests.memory(sequence))
        flags = Flag.PICKLED if encoded.pickled else 0
        return RequestHead(sequence, Kind.INFER, flags, 0, 0, 0, time.monotonic_ns(), *encoded[:3], cancelled=0)

    def cut_off(self) -> None:
        """Truncate the segments under whoever has them mapped."""
        for name in self.names:
            if not name.startswith("sem."):
                os.truncate(f"/dev/shm/{name}", 0)

    def publish(self, head: RequestHead) -> None:
        self.requests.publish(tuple(head))
        self.ring()

    def ring(self) -> None:
        self.attachment.channel.request_bell.ring()

    def count(self, counter: int) -> None:
        """Claim to have published up to this sequence."""
        self.requests.segment.words[self.requests.segment.counter_index] = counter
        self.ring()

    def reply(self, sequence: int) -> tuple[ReplyHead, Any]:
        """The reply to `sequence`, once it is there: its head, and its tree."""
        head = wait_until("the reply is there", lambda: self.replies.try_head(sequence))
        encoded = Encoded(head.schema, head.metadata_bytes, head.payload_bytes, bool(head.flags & Flag.PICKLED))
        return head, Decoder(allow_pickle=True).decode(self.replies.memory(sequence), *encoded)

    def wait_evicted(self) -> None:
        wait_until("the daemon has closed the connection", self.attachment.is_peer_closed)

    def __enter__(self) -> RawChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.attachment.close()
