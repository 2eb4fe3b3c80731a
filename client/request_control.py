"""Control of requests that were sent: wait, poll, cancel, complete; the owner of each Pending."""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from typing import NoReturn

from shmserve.errors import ReentrantCall, RequestCancelled, RequestTimeout, SlotsExhausted

from .client_guard import ClientGuard, ParkingLot
from .connection_events import ConnectionEvents
from .connector import Connector
from .contract_gate import ContractGate
from .error_mapping import cancelled_error
from .fast_path import FastPath
from .fork_guard import note_owned
from .model_unchecked import ModelUnchecked
from .model_watch import ModelWatch
from .pending import Pending
from .reply_thread import ReplyThread
from .reply_waiter import LONGEST_WAIT_NS, ReplyWaiter
from .request_table import RequestTable

#: A daemon is asked for this time, at most, why a request came to nothing.
_LONGEST_REASON_NS = 50_000_000
#: `close` waits this time for other threads to leave the channel; then a new thread waits for them.
_CLOSE_NS = 250_000_000


class ClientShutdown:
    """Ends the requests of a client and closes its connection."""

    def __init__(
        self,
        guard: ClientGuard,
        connector: Connector,
        table: RequestTable,
        fast_path: FastPath,
        waiter: ReplyWaiter,
        parking_lot: ParkingLot,
    ) -> None:
        self._guard = guard
        self._connector = connector
        self._table = table
        self._fast_path = fast_path
        self._waiter = waiter
        self._parking_lot = parking_lot

    def close(self) -> None:
        """Give the channel back; requests in flight end with ClientClosed. May be called twice.

        It may be called wherever a signal handler or a finalizer may: it waits for nothing that its own thread keeps
        from happening, and for other threads only a moment. A new thread then closes the memory that they still use.
        """
        self._guard.close()
        if self._guard.forked or self._end(time.monotonic_ns() + _CLOSE_NS):
            return
        # Not threading.Thread, whose start takes locks that the interrupted call may hold.
        with contextlib.suppress(RuntimeError):  # no thread can be started: then the end of the process closes it
            _thread.start_new_thread(self._end, (None,))

    def _end(self, until_ns: int | None) -> bool:
        """End requests and close the channel; return False if a call is in the way that cannot end now, or not in time."""
        me = threading.get_ident()
        guard, waiter, connector = self._guard, self._waiter, self._connector
        while True:
            inside = guard.is_inside()
            blocked = inside
            lock = guard.lock
            try:
                if inside or lock.acquire(timeout=LONGEST_WAIT_NS / 1e9):
                    connector.shutdown()
                    self._table.fail_all(guard.closed_error)
                    # A doorbell must not be closed under a thread that waits at it (glibc crashes), nor a connection:
                    # a thread leaves the one within one wait, the other at once.
                    if not inside and not waiter.leader and not connector.control_owner:
                        self._fast_path.deoptimize()
                        connector.close()
                        # An error that was raised keeps the frames that it passed, and they the memory of a loan.
                        self._table.clear()
                        return True
                    blocked = inside or me in (waiter.leader, connector.control_owner)
            finally:
                if not inside:
                    # No call before it: Python looks for signals at calls.
                    try:  # noqa: SIM105
                        lock.release()
                    except RuntimeError:  # another thread has it
                        pass
                self._parking_lot.unpark_all()
            if blocked or (until_ns is not None and time.monotonic_ns() >= until_ns):
                return False
            self._parking_lot.park(time.monotonic_ns() + LONGEST_WAIT_NS)

    def after_fork_in_child(self) -> None:
        """Disable this copy: the channel is the parent's."""
        self._guard.fork()
        request_loan = self._table.request_loan
        if request_loan is not None and (loan := request_loan()) is not None:
            loan.end()
        self._connector.after_fork_in_child()


class RequestControl:
    """The `RequestOwner` of a client's requests and the `ThreadUser` of its reply thread."""

    def __init__(
        self,
        guard: ClientGuard,
        connector: Connector,
        table: RequestTable,
        waiter: ReplyWaiter,
        events: ConnectionEvents,
        shutdown: ClientShutdown,
        parking_lot: ParkingLot,
        gate: ContractGate,
    ) -> None:
        #: Notified of every reply's model version; called without the lock.
        self.model_watch: ModelWatch | None = None
        #: Completes requests while no call waits for them.
        self.reply_thread = ReplyThread()
        self._guard = guard
        self._connector = connector
        self._table = table
        self._waiter = waiter
        self._events = events
        self._shutdown = shutdown
        self._parking_lot = parking_lot
        self._gate = gate
        note_owned(self)

    def wait(self, pending: Pending, until_ns: int) -> None:
        """Return once `pending` is completed; raise RequestTimeout at `until_ns`, if that is before its deadline."""
        if not pending._completed_ns:
            self._guard.check_not_inside()
            began_ns = time.monotonic_ns()
            self._waiter.wait_for(pending, until_ns, self._events)
            if not pending._completed_ns:
                now_ns = time.monotonic_ns()
                if until_ns < pending.deadline_ns:
                    raise RequestTimeout(
                        f"no reply from {self._guard.name!r} to request {pending.request_id} within the "
                        f"{(now_ns - began_ns) / 1e9:.3g} s of this wait: the request goes on until its deadline, in "
                        f"{(pending.deadline_ns - now_ns) / 1e9:.3g} s; call result() again, or cancel()",
                        waited=(now_ns - began_ns) / 1e9,
                        service=self._guard.name,
                        request_id=pending.request_id,
                    )
                self.expire(pending)
        self.settle(pending)
        if self.model_watch is not None and pending._head is not None:
            self.model_watch.observe(pending._head.version)

    def settle(self, pending: Pending) -> None:
        """Give or refuse a result that is withheld until the contract of its model is compared; may ask the daemon."""
        if type(pending._error) is ModelUnchecked:
            self._gate.settle(pending, pending._error, self._events)

    def expire(self, pending: Pending) -> None:
        """Complete a request whose deadline has passed; asks the daemon, for a moment, whether it serves at all."""
        self.abandon(pending)
        waited_ns = time.monotonic_ns() - pending._started_ns
        reason = self._connector.reason_without_model(min(_LONGEST_REASON_NS, waited_ns // 20), self._events)
        text = f"no reply from {self._guard.name!r} to request {pending.request_id} within {waited_ns / 1e9:.3g}"
        error = RequestTimeout(
            f"{text} s: {reason} (a late one is discarded)" if reason else f"{text} s (a late one is discarded)",
            waited=waited_ns / 1e9,
            service=self._guard.name,
            request_id=pending.request_id,
        )
        with self._guard.lock:
            self._table.fail(pending, error)

    def wait_a_while(self) -> None:
        """Process replies for a bounded time, for the background thread, which must not hold the interpreter."""
        until_ns = time.monotonic_ns() + LONGEST_WAIT_NS
        if self._connector.connection is not None and not self._guard.closed:
            self._waiter.wait(until_ns, self._events, spin=False)
        else:
            self._guard.check_usable()
            self._parking_lot.park(until_ns)

    def poll(self, pending: Pending) -> bool:
        """Process arrived replies without blocking; return whether `pending` is completed."""
        self._guard.check_owner()
        # Requests of a closed client end with ClientClosed; and an interrupted call may be polling itself.
        if not self._guard.closed and not self._guard.is_inside():
            with self._guard.lock:
                connection = self._connector.connection
                if connection is not None:
                    self._table.poll()
                    if self._table.in_flight and connection.is_peer_closed():
                        self._events.lost(connection)
                deferred = bool(self._table.deferred)
            if deferred:
                # A caller that only polls must also receive a reply that needed larger slots. `result` raises the error
                # about a loan that is in the way.
                with contextlib.suppress(SlotsExhausted, ReentrantCall):
                    self._events.make_room(time.monotonic_ns())
        return pending._completed_ns != 0 or self._guard.closed

    def notify(self, pending: Pending) -> None:
        """Complete `pending` in the background, at its deadline at the latest, then call its callbacks."""
        self.reply_thread.watch(pending, self, pending._run_callbacks, expires=True)

    def is_running(self, pending: Pending) -> bool:
        """Return whether an engine has taken the request and not answered it."""
        with self._guard.lock:
            connection = self._connector.connection
            if connection is None or connection.closed or self._table.in_flight.get(pending.sequence) is not pending:
                return False
            return connection.channel.replies.taken(pending.sequence)

    def cancel(self, pending: Pending) -> bool:
        """Withdraw a request that no engine has taken; return False if one has, or if it has ended."""
        guard, table = self._guard, self._table
        if not pending._completed_ns:
            guard.check_owner()
        interrupts = guard.is_inside()
        with guard.lock:
            connection = self._connector.connection
            if connection is not None and not (pending._completed_ns or interrupts or guard.closed):
                table.poll()
                if connection.is_peer_closed():
                    self._events.lost(connection)
            if pending._completed_ns:
                return type(pending._error) is RequestCancelled  # by an earlier call
            if connection is None or guard.closed or table.in_flight.get(pending.sequence) is not pending:
                return False
            channel, sequence = connection.channel, pending.sequence
            if channel.replies.taken(sequence):
                return False
            channel.requests.cancel(sequence)
            if channel.replies.taken(sequence):
                # Both may have seen the other: then the engine answers that the request is cancelled.
                channel.requests.keep(sequence)
                return False
            # Its slot is free again once the engine has answered it.
            table.fail(pending, cancelled_error(self._guard.name, sequence))
        self._parking_lot.unpark_all()
        return True

    def abandon(self, pending: Pending) -> None:
        """Discard the reply when it arrives: its slot is free again once the engine has answered it."""
        with self._guard.lock:
            connection = self._connector.connection
            if self._table.abandon(pending) and connection is not None:
                connection.channel.requests.cancel(pending.sequence)

    def release_reply(self, sequence: int) -> None:
        """Let the slot of a reply on loan be used again."""
        with self._guard.lock:
            self._table.release_reply(sequence)
        self._parking_lot.unpark_all()

    def fail_closed(self, pending: Pending) -> None:
        """Complete a request of a closed client."""
        with self._guard.lock:
            self._table.fail(pending, self._guard.closed_error())

    def check_owner(self) -> None:
        """Raise ClientForked in a forked child."""
        self._guard.check_owner()

    # The model

    def watch_model(self) -> ModelWatch:
        """Return the watch, which begins with the version known now."""
        with self._guard.lock:
            if self.model_watch is None:
                self.model_watch = ModelWatch(self.model_version())
            return self.model_watch

    def model_version(self) -> int | None:
        connection, last = self._connector.connection, self._table.last
        if last is not None:
            return last.version
        if connection is None or connection.model is None or connection.model.get("remote") is not None:
            return None  # of a link, the remote's and the fallback's versions answer, never its own
        return int(connection.model["version"], 16)

    def after_fork_in_child(self) -> None:
        """Disable this copy: the channel is the parent's."""
        self._shutdown.after_fork_in_child()
        if self.model_watch is not None:
            self.model_watch.renew_lock()

    def __reduce__(self) -> NoReturn:
        raise self._guard.pickle_error()
