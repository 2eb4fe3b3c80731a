"""Fast path: a request of a structure that was sent before, sent in one call, and waited for and received in another.

The backend decides whether a request can take it (native/python/client_fast_path.c): its structure is known, its sizes are
those that a contract declares, and a slot is free and large enough. The options of a request, and other requests in flight,
make no difference. Any other request takes the slow path, after which its structure is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmserve.backend import ClientFastPath
from shmserve.channel import ClientChannel
from shmserve.codec import Encoder
from shmserve.doorbell import NamedDoorbell

from .client_guard import ClientGuard
from .connection import Connection
from .connector import Connector
from .error_mapping import READ_ERRORS
from .pending import Pending
from .request_options import RequestOptions
from .request_table import RequestTable


class FastPath:
    """Owner of the backend's half, which belongs to one generation of the channel. Called under the lock."""

    def __init__(self, guard: ClientGuard, connector: Connector, table: RequestTable, encoder: Encoder) -> None:
        self._guard = guard
        self._connector = connector
        self._table = table
        self._encoder = encoder
        #: The backend's half, which the leader receives with; None: nothing is eligible.
        self.native: ClientFastPath | None = None
        self._channel: ClientChannel | None = None
        self._ring: Callable[[], None] | None = None

    def try_send(
        self, pending: Pending, observation: Any, options: RequestOptions, *, leads: bool
    ) -> ClientFastPath | None:
        """Publish the request; return what waits for its reply, or None, and nothing was done.

        `leads`: the caller waits for the reply, and no other thread does.
        """
        connector, table = self._connector, self._table
        connection, native = connector.connection, self.native
        if native is None or connection is None or connector.retired or self._guard.closed:
            return None
        channel = connection.channel
        if channel is not self._channel or connection.closed or connection.resizing:
            return None
        if table.replies_on_loan or table.request_loan is not None:
            return None
        if table.in_flight and table.is_latest_unpublished():
            return None  # an interrupt kept it from being published: the slow path frees its slot
        times = pending.deadline_ns, options.capture_ns, options.max_age_ns
        try:
            sent = native.try_send(observation, pending, table.in_flight, leads, options.kind, options.flags, *times)
            if sent is None and self._encoder.learn(observation):
                sent = native.try_send(
                    observation, pending, table.in_flight, leads, options.kind, options.flags, *times
                )
            if not sent:
                return None
        except READ_ERRORS:
            return None  # as in Encoder.encode: the slow path raises
        if self._ring is not None:
            self._ring()
        return native

    def specialize(self, connection: Connection) -> None:
        """Let requests on this connection's channel take the fast path, as one that took the slow path has succeeded."""
        channel = connection.channel
        if connection.closed or self._channel is channel:
            return
        requests, replies = channel.requests, channel.replies
        request_bell, reply_bell = channel.request_bell, channel.reply_bell
        # A semaphore is rung in the call that publishes. A pipe is not: a signal handler that runs while Python code writes
        # to it may raise, and then the request is published all the same.
        self._ring = None if isinstance(request_bell, NamedDoorbell) else request_bell.ring
        self.native = ClientFastPath(
            requests.heads,
            requests.memories,
            requests.rotating_slots,
            replies.heads,
            replies.memories,
            replies.poller,
            self._encoder.trees,
            connection.decoder.schemas.decoders,
            request_bell.semaphore if isinstance(request_bell, NamedDoorbell) else None,
            reply_bell.semaphore if isinstance(reply_bell, NamedDoorbell) else reply_bell,
        )
        self._channel = channel

    def touch(self) -> None:
        """Bring the memory that the next request will use into this processor's cache, if it is known."""
        if self.native is not None:
            self.native.touch(self._table.in_flight)

    def deoptimize(self) -> None:
        """Forget the backend's half: its channel is being left, and it views that memory."""
        self.native = self._channel = None
