"""Pipeline of a client's requests, composed of parts that each own their fields.

    RequestPipeline     publish, wait, lend
      RequestControl    wait for, cancel or complete a request that was sent
      ClientShutdown    the end of the client (request_control.py)
      Retrier           connects, and decides about another attempt (retry_loop.py)
      ConnectionEvents  what a new, lost or resized connection means for the requests
      ReplyWaiter       the leader at the doorbell and its followers
      ContractGate      the model's contract against observations and the robot's statement
      FastPath          a request shaped like an earlier one, in two native calls
      RequestTable      requests in flight, the slots in use, and the decoding of replies
      Connector         the connection, its capacity, and who talks to the daemon

They share one lock, the guard's, which no part holds while it waits. A Pending and a loan know their owners by protocols
(`RequestOwner`, `RequestLender`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from shmserve.backend import BACKEND
from shmserve.channel import ClientChannel
from shmserve.codec import NOTHING, DoesNotFit, Encoder
from shmserve.directories import ServicePlace
from shmserve.errors import (
    ContractMismatch,
    LoanEnded,
    ServiceRestarted,
    ServiceStopping,
    ServiceUnavailable,
    SlotsExhausted,
)
from shmserve.layout import SLOT_MASK
from shmserve.protocol import Flag, Kind
from shmserve.robot_contract import RobotContract
from shmserve.spin import SpinBudget

from .arguments import LONGEST_S, capture_seconds, seconds
from .capacity import SlotCapacity
from .client_guard import ClientGuard, ParkingLot
from .connection import Connection
from .connection_events import ConnectionEvents
from .connector import Connector
from .contract_gate import ContractGate, forget_old_model
from .device_memory import DeviceLeaves
from .error_mapping import exhausted_error, observation_error
from .fast_path import FastPath
from .loans import RequestLoan
from .pending import Pending
from .reply_waiter import ReplyWaiter
from .request_control import ClientShutdown, RequestControl
from .request_options import BACK_PRESSURED, DEFAULT_OPTIONS, NOT_CONNECTED, RESIZE_REQUIRED, RequestOptions
from .request_table import RequestTable
from .retry_loop import Retrier, RetryStep, resend_steps, run
from .retry_policy import RetryPolicy


def request_options(
    capture_time: float | None, max_age: float | None, supersede: bool, repeatable: bool
) -> RequestOptions:
    """Check the options of a call, and convert them to nanoseconds; raises InvalidArgument."""
    flags = (Flag.SUPERSEDE if supersede else 0) | (Flag.REPEATABLE if repeatable else 0)
    if capture_time is None and max_age is None:
        return RequestOptions(Kind.INFER, flags) if flags else DEFAULT_OPTIONS
    capture_ns = time.monotonic_ns() if capture_time is None else int(capture_seconds(capture_time) * 1e9)
    if max_age is None:
        return RequestOptions(Kind.INFER, flags, capture_ns)
    if type(max_age) is not float or not 0 <= max_age <= LONGEST_S:
        max_age = seconds("max_age", max_age)
    # 0 means "no limit" on the wire, so an age of 0 is sent as 1 ns.
    return RequestOptions(Kind.INFER, flags, capture_ns, max(1, int(max_age * 1e9)))


class RequestPipeline:
    """One client's requests, across connections. Safe to call from several threads."""

    def __init__(
        self,
        name: str,
        place: ServicePlace,
        slots: int,
        budget: SpinBudget,
        retry: RetryPolicy,
        *,
        check_contract: bool = True,
        robot: RobotContract | None = None,
        period_ns: int = 0,
    ) -> None:
        self.name = name
        self._on_device = DeviceLeaves()
        self._encoder = Encoder(on_device=self._on_device)
        self._guard = ClientGuard(name)
        self._parking_lot = ParkingLot()
        capacity = SlotCapacity(slots)
        self._table = RequestTable(name, capacity)
        self._connector = Connector(self._guard, place, capacity, self._parking_lot, self._on_device)
        guard, connector, table, lot = self._guard, self._connector, self._table, self._parking_lot
        self._fast_path = FastPath(guard, connector, table, self._encoder)
        self.gate = ContractGate(
            guard, connector, table, self._fast_path, self._encoder, lot, check_contract=check_contract, robot=robot
        )
        self._waiter = ReplyWaiter(guard, connector, table, lot, budget)
        self._events = ConnectionEvents(guard, connector, table, self._fast_path, self._encoder, lot, period_ns)
        self._shutdown = ClientShutdown(guard, connector, table, self._fast_path, self._waiter, lot)
        #: The owner of every Pending.
        self.control = RequestControl(
            guard, connector, table, self._waiter, self._events, self._shutdown, lot, self.gate
        )
        self.retrier = Retrier(retry, guard, connector, table, self._events, lot)

    # A request from beginning to end

    def request(
        self,
        observation: Any,
        options: RequestOptions,
        timeout_ns: int,
        *,
        loan: bool = False,
        retry: RetryPolicy | None = None,
        first: Pending | None = None,
    ) -> Pending:
        """Publish, wait, and return the completed request; send it again where a restart cut it off and that is harmless.

        `first` is the first attempt of a request that is sent again. Raises what the request ended with.
        """
        if first is None:
            started_ns = time.monotonic_ns()
            pending = Pending(self.control, started_ns, started_ns + timeout_ns, threading.get_ident() if loan else 0)
        else:
            pending = Pending(self.control, first._started_ns, first.deadline_ns, first._loan_thread)
        specializes = False
        try:
            if loan:
                self.publish(pending, observation, options, retry)
            elif self._waiter.lead(self._fast_path, pending, observation, options):
                if pending._completed_ns and pending._error is None and self.control.model_watch is None:
                    return pending
            else:
                self.publish(pending, observation, options, retry)
                specializes = True
            if not pending._completed_ns:
                self._waiter.wait_for(pending, pending.deadline_ns, self._events)
                if not pending._completed_ns:
                    self.control.expire(pending)
            if pending._error is not None:
                self.control.settle(pending)
            if (watch := self.control.model_watch) is not None and pending._head is not None:
                watch.observe(pending._head.version)
            if pending._error is not None:
                raise pending._error
            if specializes:
                self._specialize()
            return pending
        except (ServiceRestarted, ServiceStopping) as failure:
            if first is not None:
                raise
            return self._resend(failure, pending, observation, options, retry or self.retrier.policy)
        except BaseException:
            self.control.abandon(pending)  # Ctrl-C, a timeout: the reply is discarded when it arrives
            raise

    def _resend(
        self,
        failure: ServiceUnavailable,
        first: Pending,
        observation: Any,
        options: RequestOptions,
        retry: RetryPolicy,
    ) -> Pending:
        answered = first

        def perform(step: RetryStep) -> ServiceUnavailable | None:
            nonlocal answered
            if step is not RetryStep.SEND:
                return self.retrier.perform(step, first.deadline_ns, retry)
            try:
                answered = self.request(observation, options, 0, retry=retry, first=first)
            except (ServiceRestarted, ServiceStopping) as error:
                return error
            return None

        run(resend_steps(self.retrier, failure, options, first.deadline_ns, retry), perform)
        return answered

    def submit(self, observation: Any, options: RequestOptions, timeout_ns: int) -> Pending:
        """Publish, and return the request in flight."""
        started_ns = time.monotonic_ns()
        pending = Pending(self.control, started_ns, started_ns + timeout_ns)
        try:
            if not self._try_send(pending, observation, options):
                self.publish(pending, observation, options)
                self._specialize()
        except BaseException:
            self.control.abandon(pending)  # Ctrl-C when it was in flight already: no caller has it to wait for
            raise
        return pending

    # Publishing

    def _try_send(self, pending: Pending, observation: Any, options: RequestOptions) -> bool:
        """Publish on the fast path; return False, and nothing was done, for a request that cannot take it."""
        if self._guard.is_inside():
            return False  # the slow path raises
        with self._guard.lock:
            return self._fast_path.try_send(pending, observation, options, leads=False) is not None

    def publish(
        self,
        pending: Pending,
        observation: Any,
        options: RequestOptions = DEFAULT_OPTIONS,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Encode into the next slot and make it visible; waits for a free slot until the deadline.

        Raises SlotsExhausted, ServiceUnavailable, and what the codec rejects.
        """
        while (status := self.try_publish(pending, observation, options)) < 0:
            self._await_capacity(status, pending.deadline_ns, retry)

    def try_publish(self, pending: Pending, observation: Any, options: RequestOptions = DEFAULT_OPTIONS) -> int:
        """Publish if that needs no waiting; return the sequence, or a negative status: nothing was done."""
        guard = self._guard
        if guard.is_inside():
            raise guard.reentrant_error()
        with guard.lock:
            connection = self._connector.connection
            status = self._status_of(connection, options.kind)
            if connection is None or status:
                return status
            return self._publish(connection, pending, observation, options)

    def _status_of(self, connection: Connection | None, kind: Kind) -> int:
        """Return why nothing may be published on the connection now, or 0."""
        if self._guard.closed or self._guard.forked:
            self._guard.check_usable()
        if connection is None or connection.closed:
            return NOT_CONNECTED
        if kind == Kind.INFER and (status := self.gate.admit(connection)):
            return status
        if connection.resizing:
            if self._connector.control_owner == threading.get_ident():
                raise self._guard.reentrant_error()
            return BACK_PRESSURED
        return 0

    def _publish(
        self,
        connection: Connection,
        pending: Pending,
        observation: Any,
        options: RequestOptions,
        loan: RequestLoan | None = None,
    ) -> int:
        table = self._table
        sequence = table.claim(pending) if loan is None else table.claim_loan(pending, loan)
        if sequence < 0:
            return sequence
        requests = connection.channel.requests
        memory = requests.memories[sequence & SLOT_MASK]
        try:
            encoded = NOTHING
            if options.kind == Kind.INFER:
                encoded = self._encoder.encode(observation, memory)
                if self._on_device.met:
                    self._on_device.give(connection.area, sequence & SLOT_MASK, on_loan=loan is not None)
            if self._guard.forked:
                self._guard.check_owner()  # by an object of the observation, or a handler meanwhile
        except BaseException as error:
            table.retract(pending)
            status = 0 if loan is not None else self._status_after(error, connection)
            if status:
                return status
            raise observation_error(self.name, error, on_loan=loan is not None) from error
        if loan is not None:
            loan.end()
            table.release_loan(loan)
        requests.publish(
            (
                sequence,
                options.kind,
                options.flags | Flag.PICKLED if encoded.pickled else options.flags,
                pending.deadline_ns,
                options.capture_ns,
                options.max_age_ns,
                time.monotonic_ns(),
                encoded.schema,
                encoded.metadata_bytes,
                encoded.payload_bytes,
                0,
                memory.write_id,
            )
        )
        connection.channel.request_bell.ring()
        return sequence

    def _status_after(self, error: BaseException, connection: Connection) -> int:
        """Return the status that an error of the encoder stands for, or 0 if it is the caller's to have."""
        if isinstance(error, DoesNotFit):
            self._connector.capacity.grow_requests(error.metadata_bytes, error.payload_bytes)
            if error.device_bytes:
                self._on_device.want(error.device_bytes, connection.area)
            return RESIZE_REQUIRED
        if isinstance(error, ContractMismatch) and forget_old_model(connection):
            return NOT_CONNECTED
        return 0

    def _await_capacity(self, status: int, deadline_ns: int, retry: RetryPolicy | None = None) -> None:
        """Do what the status asks for, or a part of it; the caller tries again."""
        if status == NOT_CONNECTED:
            self.retrier.connect(deadline_ns, retry)
            return
        if status == RESIZE_REQUIRED and self._events.make_room(deadline_ns):
            return
        with self._guard.lock:
            awaited = self._connector.connection is not None and self._table.is_awaited()
        if awaited and not self._connector.control_owner:
            self._waiter.wait(deadline_ns, self._events)
        else:
            self._parking_lot.park(deadline_ns)  # only another thread can release the loan or finish the call
        if time.monotonic_ns() >= deadline_ns:
            raise exhausted_error(self.name, self._table.slots, resize=status == RESIZE_REQUIRED)

    def _specialize(self) -> None:
        with self._guard.lock:
            connection = self._connector.connection
            if connection is not None and self.gate.is_admitted(connection):
                self._fast_path.specialize(connection)

    def expect(self, within_ns: int, rehearse: Callable[[], None]) -> None:
        """Tell the engine that a request follows, wake it if it sleeps, `rehearse`, and touch what the request will use.

        Waits for nothing: where the client is not attached or its lock is held, it does nothing.
        """
        self._prepare(rehearse, lambda channel: channel.expect(time.monotonic_ns() + within_ns))

    def rehearse(self, rehearse: Callable[[], None]) -> None:
        """As `expect`, without a word to the engine, which knows by itself."""
        self._prepare(rehearse, lambda channel: None)

    def _prepare(self, rehearse: Callable[[], None], tell: Callable[[ClientChannel], None]) -> None:
        self._guard.check_usable()
        if self._guard.is_inside():
            return
        lock = self._guard.lock
        try:
            if lock.acquire(blocking=False):
                connection = self._connector.usable()
                if connection is not None and not connection.resizing:
                    tell(connection.channel)
                    if self._fast_path.native is not None:
                        rehearse()
                        self._fast_path.touch()
        finally:
            # No call before it: Python looks for signals at calls.
            try:  # noqa: SIM105
                lock.release()
            except RuntimeError:  # another thread has it
                pass

    def latest_submitted_ns(self) -> int:
        """Return when the latest request was published (CLOCK_MONOTONIC), 0 for none; raises once the client is closed."""
        self._guard.check_usable()
        connection = self._connector.usable()
        try:
            head = connection.channel.requests.latest() if connection is not None else None
        except ValueError:  # the channel was closed meanwhile
            head = None
        return head.submitted_ns if head is not None else 0

    def make_room(self, deadline_ns: int) -> bool:
        """Resize the channel to the requested capacity; return False, and do nothing, while it is in use."""
        return self._events.make_room(deadline_ns)

    def exhausted_error(self) -> SlotsExhausted:
        """Return the error for a request that had no slot in time."""
        return exhausted_error(self.name, self._table.slots)

    # Loans of request slots

    def loan(self, example: dict[str, Any], options: RequestOptions, timeout_ns: int) -> RequestLoan:
        """Lend the next request slot, laid out for trees like `example`.

        The loan has the example's tree, with arrays that are slot memory. It lasts while the caller keeps it.
        """
        deadline_ns = time.monotonic_ns() + timeout_ns
        while True:
            self._guard.check_not_inside()
            with self._guard.lock:
                connection = self._connector.connection
                status = self._status_of(connection, Kind.INFER) or self._table.claim(None)
                if connection is not None and status > 0:
                    try:
                        tree, arrays = self._encoder.lay_out(example, connection.channel.requests.memory(status))
                    except BaseException as error:
                        status = self._status_after(error, connection)
                        if not status:
                            raise observation_error(self.name, error) from error
                    else:
                        loan = RequestLoan(self, connection, status, arrays, options, timeout_ns)
                        self._table.lend(loan)
                        loan.update(tree)
                        return loan
            self._await_capacity(status, deadline_ns)

    def send_loan(self, loan: RequestLoan, observation: dict[str, Any]) -> Pending:
        """Publish a slot on loan; entries that lie in it already are not copied."""
        now_ns = time.monotonic_ns()
        pending = Pending(self.control, now_ns, now_ns + loan.timeout_ns)
        self._guard.check_not_inside()
        with self._guard.lock:
            self._guard.check_usable()
            if not self._table.is_lent(loan):
                raise LoanEnded("this loan has ended: borrow another")
            connection = self._connector.connection
            if connection is None or connection is not loan.connection or connection.is_peer_closed():
                self._guard.check_usable()  # closing the client ends the connection, too
                raise ServiceUnavailable(
                    f"the daemon of {self.name!r} went away while the slot was on loan; nothing was sent: borrow another",
                    service=self.name,
                )
            self._publish(connection, pending, observation, loan.options, loan)
        self._parking_lot.unpark_all()
        return pending

    def release_loan(self, loan: RequestLoan) -> None:
        """Let the slot of a loan that was not sent be used again."""
        loan.end()
        with self._guard.lock:
            self._table.release_loan(loan)
        self._parking_lot.unpark_all()

    # The connection

    def connect(self, deadline_ns: int) -> None:
        """Attach; compare a robot's statement, if the service has a model. Raises ServiceUnavailable, ContractMismatch."""
        status = NOT_CONNECTED
        while status == NOT_CONNECTED:
            self.retrier.connect(deadline_ns)
            with self._guard.lock:
                status = self._status_of(self._connector.connection, Kind.INFER)

    def describe(self, deadline_ns: int) -> dict[str, Any]:
        """Return the daemon's description of itself and its model."""
        self.retrier.connect(deadline_ns)
        return self._connector.describe(deadline_ns, self._events)

    # The model

    @property
    def late_replies(self) -> int:
        """The number of replies that arrived after their deadline and were discarded."""
        return self._table.late_replies

    def __repr__(self) -> str:
        state = "attached" if self._connector.usable() is not None else "not attached"
        if self._guard.closed:
            state = "closed"
        if self._guard.forked:
            state = "forked"
        version = self.control.model_version()
        model = f" model={version >> 40:06x}" if version is not None else ""
        return f"{self.name!r} {state}{model} backend={BACKEND}"

    # The end

    def check_usable(self) -> None:
        """Raise ClientClosed or ClientForked for a client that is."""
        self._guard.check_usable()

    def check_owner(self) -> None:
        """Raise ClientForked in a forked child."""
        self._guard.check_owner()

    def close(self) -> None:
        """Give the channel back; requests in flight end with ClientClosed. May be called twice."""
        self._shutdown.close()

    def __reduce__(self) -> NoReturn:
        raise self._guard.pickle_error()
