"""End of a client: by `close`, from any thread, signal handler or finalizer, or by a fork."""

from __future__ import annotations

import _thread
import contextlib
import threading
import time

from .client_guard import ClientGuard
from .connector import Connector
from .fast_path import FastPath
from .parking_lot import ParkingLot
from .reply_waiter import LONGEST_WAIT_NS, ReplyWaiter
from .request_table import RequestTable

#: `close` waits this time for other threads to leave the channel, and lets a thread of its own wait longer.
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
        from happening, and for other threads only a moment. What they still use is closed by a thread of its own then.
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
