"""Wait for replies: one thread at the doorbell, the others behind it.

The pattern is Leader/Followers (Schmidt et al., POSA 2): the leader waits at the doorbell and completes the requests of
every thread; the followers park, and when the leader leaves, one of them becomes the next. The leader spins for as long
as a reply is likely soon (shmserve/spin.py), then blocks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Protocol

from shmserve.backend import core
from shmserve.channel import ClientChannel
from shmserve.counter_poller import spin_unless_same_cpu
from shmserve.errors import SlotsExhausted
from shmserve.ring import ReplyHead
from shmserve.spin import SpinBudget

from .client_guard import ClientGuard, ParkingLot
from .connection import Connection
from .connector import Connector
from .pending import Pending
from .request_table import RequestTable

#: No wait is longer without a check of the connection: this is how soon a daemon's end is noticed.
LONGEST_WAIT_NS = 50_000_000


class WaiterUser(Protocol):
    """The pipeline, as its waiter sees it."""

    def lost(self, connection: Connection) -> None:
        """The daemon has gone away. Called under the lock."""

    def make_room(self, deadline_ns: int) -> bool:
        """Resize the channel for deferred replies."""


class DirectPath(Protocol):
    """A request and its reply without the table's general handling: the fast path. Called under the lock."""

    def try_send(self, pending: Pending, observation: Any) -> ClientChannel | None:
        """Publish the request; return the channel to wait on, or None, and nothing was done."""

    @property
    def native(self) -> core.ClientFastPath | None:
        """The native half, which finds a reply that has arrived and is an ordinary one; None once its channel is left."""


class ReplyWaiter:
    """Owner of the leadership and of the spin budget."""

    def __init__(
        self,
        guard: ClientGuard,
        connector: Connector,
        table: RequestTable,
        parking_lot: ParkingLot,
        budget: SpinBudget,
    ) -> None:
        #: The thread that waits at the doorbell, for all; 0 for none.
        self.leader = 0
        self._guard = guard
        self._connector = connector
        self._table = table
        self._parking_lot = parking_lot
        self._budget = budget
        self._waited_ns = 0  # how long the last wait was; 0: the budget has learnt from it
        self._spun = False  # it ended while it spun, and left its token

    def wait_for(self, pending: Pending, until_ns: int, user: WaiterUser) -> None:
        """Wait until `pending` is completed, at most until `until_ns`."""
        while not pending._completed_ns:
            self.wait(until_ns, user, pending)
            if time.monotonic_ns() >= until_ns:
                return

    def wait(self, until_ns: int, user: WaiterUser, pending: Pending | None = None, *, spin: bool = True) -> None:
        """Wait until some reply has been processed, or a bounded time; the caller checks what it waits for."""
        me = threading.get_ident()
        interrupts = self.leader == me  # another wait of this thread, by a signal handler or a finalizer
        guard, connector, table = self._guard, self._connector, self._table
        try:
            with guard.lock:
                if guard.closed or guard.forked:
                    guard.check_usable()
                connection = connector.connection
                if (pending is not None and pending._completed_ns) or connection is None:
                    return
                leads = self.leader in (0, me)
                if leads:
                    # Not a lock, which Ctrl-C at the wrong moment would leave locked for ever.
                    self.leader = me
                    if connector.retired and not interrupts:
                        connector.close_retired()
                    channel = connection.channel
                    replies = channel.replies
                    count = replies.words[replies.counter]
                    if count != table.polled_count and table.poll():
                        return
                    replies.poller.last_seen = count  # the leader's own note: others may poll meanwhile
            if not leads:
                self._parking_lot.park(until_ns)
                return
            self._wait_at_doorbell(channel, until_ns, spin)
            with guard.lock:
                if not table.poll() and connection.is_peer_closed():
                    user.lost(connection)
            if table.deferred:
                if pending is not None and pending._completed_ns:
                    # Its own reply may be on loan now; another thread, or the next request, finds the slots as they are.
                    with contextlib.suppress(SlotsExhausted):
                        user.make_room(until_ns)
                else:
                    user.make_room(until_ns)
            if connector.retired and not interrupts:
                with guard.lock:
                    connector.close_retired()
        finally:
            # No call before the store: Python looks for signals at calls.
            if self.leader == me and not interrupts:
                self.leader = 0
                if self._parking_lot.parked:
                    self._parking_lot.unpark_all()

    def lead(self, path: DirectPath, pending: Pending, observation: Any) -> bool:
        """Send through `path` and wait for the reply as the leader; return False, and nothing was done, if it declines.

        After this `pending` may still be incomplete: then `wait_for` goes on.
        """
        guard = self._guard
        if guard.is_inside():
            return False  # the slow path raises
        me, leads = threading.get_ident(), False
        try:
            with guard.lock:
                if self.leader:
                    return False
                channel = path.try_send(pending, observation)
                if channel is None:
                    return False
                self.leader = me
                leads = True
            self._wait_at_doorbell(channel, pending.deadline_ns, True)
            with guard.lock:
                native = path.native
                found = native.try_receive(ReplyHead) if native is not None else None
                # Unless it was completed meanwhile, with an error: the client was closed.
                is_open = not pending._completed_ns and self._table.in_flight.get(pending.sequence) is pending
                if found is not None and is_open:
                    self._table.complete(pending, found)
        finally:
            # No call before the store, as in `wait`.
            if leads and self.leader == me:
                self.leader = 0
                if self._parking_lot.parked:
                    self._parking_lot.unpark_all()
        return True

    def _wait_at_doorbell(self, channel: ClientChannel, until_ns: int, spin: bool) -> None:
        """Return when the engine's count of replies is not the one that their watch has seen, or after a bounded time."""
        bell = channel.reply_bell
        began_ns = time.monotonic_ns()
        # While the engine is busy: learn from the last wait, and drain the token left over from a spin, which would wake
        # this wait spuriously. If the token is this reply's already, its counter has moved.
        if self._waited_ns:
            self._budget.waited(self._waited_ns)
            self._waited_ns = 0
            if self._spun:
                self._spun = False
                bell.try_take()
        moved_ns = spin_unless_same_cpu(
            channel.replies.pollers, min(began_ns + self._budget.ns, until_ns) if spin else 0
        )
        if moved_ns:
            self._waited_ns, self._spun = moved_ns - began_ns, True
            return
        now_ns = time.monotonic_ns()
        if bell.wait(max(0, min(until_ns - now_ns, LONGEST_WAIT_NS))):
            self._waited_ns = time.monotonic_ns() - began_ns
