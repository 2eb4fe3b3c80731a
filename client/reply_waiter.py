"""Wait for replies: one thread at the doorbell, the others behind it.

The pattern is Leader/Followers (Schmidt et al., POSA 2): the leader waits at the doorbell and completes the requests of
every thread; the followers park, and when the leader leaves, one of them becomes the next. The leader spins for as long
as a reply is likely soon (shmserve/spin.py), then blocks. If replies take longer, and all about as long, it wakes up shortly
before the next one is due (service_time.py).
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Protocol

from shmserve.backend import ClientFastPath, mark_asleep, mark_awake, spin_unless_blocked
from shmserve.channel import ClientChannel
from shmserve.errors import SlotsExhausted
from shmserve.ring import ReplyHead
from shmserve.spin import SpinBudget

from .client_guard import ClientGuard, ParkingLot
from .connection import Connection
from .connector import Connector
from .pending import Pending
from .request_options import RequestOptions
from .request_table import RequestTable
from .service_time import ServiceTime

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

    def try_send(
        self, pending: Pending, observation: Any, options: RequestOptions, *, leads: bool
    ) -> ClientFastPath | None:
        """Publish the request; return the backend's half, which waits for the reply, or None, and nothing was done."""

    @property
    def native(self) -> ClientFastPath | None:
        """The backend's half; None once its channel is left."""


class ReplyWaiter:
    """Owner of the leadership, of the spin budget and of the service time."""

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
        #: How long the last wait was: negative if it ended while it spun, and left its token; 0: the budget has learnt from it.
        self._waited_ns = 0
        self._service = ServiceTime()
        #: How long the last wait polled for a reply that was due: negative if in vain; 0: the service time has learnt from it.
        self._polled_ns = 0
        self._noted: ReplyHead | None = None  # the last reply that the service time has learnt from

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
                channel = connection.channel
                replies = channel.replies
                count = replies.words[replies.counter]
                if not leads:
                    # A leader on the fast path waits for its own reply, which may come after this one.
                    if count != table.polled_count and table.poll():
                        return
                else:
                    # Not a lock, which Ctrl-C at the wrong moment would leave locked for ever.
                    self.leader = me
                    if connector.retired and not interrupts:
                        connector.close_retired()
                    if count != table.polled_count and table.poll():
                        return
                    replies.poller.last_seen = count  # the leader's own note: others may poll meanwhile
            if not leads:
                self._parking_lot.park(until_ns)
                return
            self._wait_at_doorbell(channel, until_ns, pending, spin)
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

    def lead(self, path: DirectPath, pending: Pending, observation: Any, options: RequestOptions) -> bool:
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
                native = path.try_send(pending, observation, options, leads=True)
                if native is None:
                    return False
                self.leader = me
                leads = True
            # While the engine is busy.
            budget, sleep_ns, poll_ns = self._budget, 0, 0
            last_ns, self._waited_ns = self._waited_ns, 0
            if last_ns:
                budget.waited(abs(last_ns))
            if not budget.ns and budget.is_adaptive:
                sleep_ns, poll_ns = self._plan()
            sequence, deadline_ns = pending.sequence, pending.deadline_ns
            found = native.wait(
                sequence, last_ns < 0, budget.ns, sleep_ns, poll_ns, LONGEST_WAIT_NS, deadline_ns, ReplyHead
            )
            self._waited_ns = native.waited_ns
            if sleep_ns:
                self._polled_ns = native.polled_ns
            if found is not None:
                with guard.lock:
                    # Unless it was completed meanwhile: by another thread, or with an error, as the client was closed; its
                    # slot may have been used again since, and this result be a mixture. And unless another thread has sent
                    # a request since: a wait finds the replies of both.
                    if (
                        path.native is native
                        and native.sequence == sequence
                        and not pending._completed_ns
                        and self._table.in_flight.get(sequence) is pending
                    ):
                        self._table.complete(pending, found)
        finally:
            # No call before the store, as in `wait`.
            if leads and self.leader == me:
                self.leader = 0
                if self._parking_lot.parked:
                    self._parking_lot.unpark_all()
        return True

    def _plan(self) -> tuple[int, int]:
        """Learn from the last reply; return how long to sleep after a publication, and to poll then.

        0: sleep until the doorbell rings. The times in a reply's head are the engine's, without this side's wake-up.
        """
        service, head = self._service, self._table.last
        if head is not None and head is not self._noted:
            self._noted = head
            polled_ns, self._polled_ns = self._polled_ns, 0
            service.note(head.queued_ns + head.staged_ns + head.infer_ns + head.copied_ns, polled_ns)
        return service.sleep_ns, service.poll_ns

    def _wait_at_doorbell(
        self, channel: ClientChannel, until_ns: int, pending: Pending | None = None, spin: bool = True
    ) -> None:
        """Return when the engine's count of replies is not the one that their watch has seen, or after a bounded time."""
        budget, pollers, wake_ns, poll_ns = self._budget, channel.replies.pollers, 0, 0
        began_ns = time.monotonic_ns()
        # While the engine is busy: learn from the last wait, and drain the token left over from a spin, which would wake
        # this wait spuriously. If the token is this reply's already, its counter has moved.
        last_ns, self._waited_ns = self._waited_ns, 0
        if last_ns:
            budget.waited(abs(last_ns))
            if last_ns < 0:
                channel.reply_bell.try_take()
        if spin and pending is not None and pending.sequence and not budget.ns and budget.is_adaptive:
            sleep_ns, poll_ns = self._plan()
            if sleep_ns:
                wake_ns = channel.requests.submitted_ns(pending.sequence) + sleep_ns
        spun_ns = spin_unless_blocked(pollers, min(began_ns + budget.ns, until_ns) if spin else 0)
        if spun_ns:
            self._waited_ns = -spun_ns
            return
        now_ns = time.monotonic_ns()
        end_ns = min(until_ns, now_ns + LONGEST_WAIT_NS)
        if not now_ns < wake_ns < end_ns:
            taken = self._sleep(channel, end_ns)
        elif not (taken := self._sleep(channel, wake_ns)):
            woke_ns = time.monotonic_ns()
            if woke_ns < wake_ns:
                return  # a signal has ended the sleep
            # The kernel may have moved the engine while this thread slept: the spin yields.
            spun_ns = spin_unless_blocked(pollers, min(wake_ns + poll_ns, until_ns), True)
            polled_ns = max(1, time.monotonic_ns() - woke_ns)
            if spun_ns:
                self._polled_ns, self._waited_ns = polled_ns, began_ns - time.monotonic_ns()
                return
            self._polled_ns = -polled_ns
            taken = self._sleep(channel, end_ns)
        if taken:
            self._waited_ns = time.monotonic_ns() - began_ns

    def _sleep(self, channel: ClientChannel, until_ns: int) -> bool:
        """Sleep at the doorbell, and say so; return whether a token came and was taken."""
        writers = channel.requests.writers
        mark_asleep(writers)
        try:
            return channel.reply_bell.wait(max(0, until_ns - time.monotonic_ns()))
        finally:
            mark_awake(writers)
