"""Effects of connection events on the requests of a client: attached, lost, resized."""

from __future__ import annotations

import threading

from shmserve.codec import Encoder
from shmserve.errors import InferenceFailed, SlotsExhausted

from .client_guard import ClientGuard, ParkingLot
from .connection import ChannelRefused, Connection
from .connector import Connector
from .fast_path import FastPath
from .request_table import RequestTable


class ConnectionEvents:
    """What `Connector` and `ReplyWaiter` report to; called under the lock, but for `make_room`."""

    def __init__(
        self,
        guard: ClientGuard,
        connector: Connector,
        table: RequestTable,
        fast_path: FastPath,
        encoder: Encoder,
        parking_lot: ParkingLot,
        period_ns: int = 0,
    ) -> None:
        """`period_ns`: the time between two requests, for the engine; 0: it learns that."""
        self._guard = guard
        self._connector = connector
        self._table = table
        self._fast_path = fast_path
        self._encoder = encoder
        self._parking_lot = parking_lot
        self._period_ns = period_ns

    def make_room(self, deadline_ns: int) -> bool:
        """Resize the channel to the requested capacity; return False, and do nothing, while it is in use.

        Raises SlotsExhausted if a loan of the calling thread is in the way, and ObservationTooLarge.
        """
        return self._connector.resize(deadline_ns, self)

    def attached(self, connection: Connection) -> None:
        """Start on a new connection."""
        self._guard.check_usable()
        self._encoder.allow_pickle = connection.trusted
        self._fast_path.deoptimize()
        connection.channel.requests.say_period(self._period_ns)
        self._table.begin(connection, connection.model["stateful"] if connection.model is not None else None)

    def lost(self, connection: Connection) -> None:
        """Complete the requests in flight: the daemon has gone away."""
        if connection.closed:
            return
        self._table.poll()  # replies that it gave before are still there
        self._table.fail_all(connection.close_error)
        self._table.clear()
        self._fast_path.deoptimize()
        self._connector.retire(connection)
        self._parking_lot.unpark_all()

    def begin_resize(self, connection: Connection) -> bool:
        """Return whether nothing but deferred replies lives in this generation of the channel."""
        table = self._table
        if not table.is_busy():
            return True
        if not table.poll() and connection.is_peer_closed():
            self.lost(connection)
        if table.lends_reply_to(threading.get_ident()):
            raise SlotsExhausted(
                f"the slots of {self._guard.name!r} must grow, and one holds a reply that is lent out: leave its block",
                service=self._guard.name,
            )
        return False

    def resize_arguments(self, connection: Connection) -> tuple[int, list[int]]:
        """Return the last published sequence, and the deferred replies."""
        return connection.channel.requests.published(), self._table.deferred.copy()

    def switched(self, connection: Connection, deferred: list[int]) -> None:
        """Continue in the next generation of the channel."""
        self._fast_path.deoptimize()
        connection.channel.requests.say_period(self._period_ns)
        self._table.switch(deferred)

    def resize_refused(self, refusal: ChannelRefused) -> None:
        """Complete the requests whose replies need larger slots; raise the refusal if there are none."""
        if not self._table.deferred:
            raise refusal.error from refusal
        self._table.fail_deferred(
            lambda number: InferenceFailed(
                f"the result of request {number} needs more room: {refusal.error}",
                service=self._guard.name,
                request_id=number,
            )
        )
