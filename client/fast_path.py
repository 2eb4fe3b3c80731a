"""Fast path: a request shaped like an earlier one, sent and received in one native call each.

A request is eligible if its options are the default ones, the client has nothing else in flight or on loan, and it and
its reply have the structures that the path was specialized for (as a specializing interpreter, PEP 659). The native part
is native/python/client_fast_path.c. Whatever turns out to be different goes on through the slow path, which specializes again.
"""

from __future__ import annotations

from typing import Any

from shmserve.backend import core
from shmserve.channel import ClientChannel
from shmserve.codec import Encoder
from shmserve.protocol import Flag

from .client_guard import ClientGuard
from .connection import Connection
from .connector import Connector
from .error_mapping import READ_ERRORS
from .pending import Pending
from .request_table import RequestTable


class FastPath:
    """Owner of the native half, which belongs to one generation of the channel. Called under the lock."""

    def __init__(self, guard: ClientGuard, connector: Connector, table: RequestTable) -> None:
        self._guard = guard
        self._connector = connector
        self._table = table
        #: The native half, which the leader receives with; None: nothing is eligible.
        self.native: core.ClientFastPath | None = None
        self._channel: ClientChannel | None = None

    def try_send(self, pending: Pending, observation: Any) -> ClientChannel | None:
        """Publish the request; return the channel to wait on, or None, and nothing was done."""
        connector, table = self._connector, self._table
        connection, native = connector.connection, self.native
        if native is None or connection is None or connector.retired or self._guard.closed:
            return None
        channel = connection.channel
        if channel is not self._channel or connection.closed or connection.resizing:
            return None
        if table.replies_on_loan or table.request_loan is not None:
            return None
        try:
            if not native.try_send(observation, pending.deadline_ns, table.in_flight, pending):
                return None
        except READ_ERRORS:
            return None  # as in Encoder.encode: the slow path raises
        channel.request_bell.ring()
        return channel

    def specialize(self, pending: Pending, encoder: Encoder, connection: Connection) -> None:
        """Make requests and replies like those of `pending`, which took the slow path, eligible from now on."""
        head, known = pending._head, encoder.latest
        if connection.closed or head is None or head.flags & Flag.PICKLED or known is None or known.encoder is None:
            return
        channel, reply = connection.channel, connection.decoder.known.get(head.schema)
        if reply is None or reply.decoder is None or not reply.is_all_arrays:
            return
        if self.native is None or self._channel is not channel:
            requests, replies = channel.requests, channel.replies
            if requests.native is None or replies.native is None:
                return
            self.native = core.ClientFastPath(
                requests.native,
                requests.memories,
                requests.rotating_slots,
                replies.native,
                replies.memories,
                replies.poller,
            )
            self._channel = channel
        self.native.specialize(known.encoder, known.schema_id, known.metadata_bytes, reply.decoder, head.schema)

    def deoptimize(self) -> None:
        """Forget the native half: its channel is being left, and it views that memory."""
        self.native = self._channel = None
