"""ShmClient: asks the model of a service on this host, through shared memory."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any, Literal, final, overload

from shmserve.errors import InvalidArgument, RequestRejected, ServiceRestarted, ServiceStopping, ServiceUnavailable
from shmserve.protocol import Flag, Kind
from shmserve.spin import SpinBudget, SpinSetting

from .arguments import capture_seconds, place_of, seconds, whole
from .async_waiter import AsyncWaiter
from .attachment import Wanted
from .contract_check import check_observation
from .loans import LentReply, LoanedObservation
from .model_watch import OnModelChange
from .pending import Pending
from .plain_exchange import PlainExchange
from .reply import Reply
from .retry_policy import RetryPolicy
from .terms import Terms


@final
class ShmClient:
    """A robot process's client; safe to call from several threads, not across a fork.

    `timeout` (seconds) is for a whole call, retries included. A service that is not there is tried
    again `max_retries` times, `retry_delay` seconds apart. `slots` is how many requests can be out at
    a time. `spin_us` is how long to look for a reply before sleeping (microseconds, or "adaptive").
    With `check_contract` the first observation of each structure is compared with what the model was declared to take.

    It attaches with the first request, or with `connect`, or on entering a `with` block, and again
    when the daemon was restarted.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        runtime_dir: str | os.PathLike[str] | None = None,
        timeout: float = 10.0,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        slots: int = 4,
        spin_us: SpinSetting = "adaptive",
        check_contract: bool = True,
    ) -> None:
        self._timeout_ns = int(seconds("timeout", timeout) * 1e9)
        try:
            budget = SpinBudget(spin_us)
        except ValueError as error:
            raise InvalidArgument(str(error)) from error
        self._exchange = PlainExchange(
            name,
            place_of(name, runtime_dir),
            Wanted(whole("slots", slots, 1, 64)),
            budget,
            RetryPolicy.of(max_retries, retry_delay),
            check_contract=check_contract,
        )
        self._async_waiter = AsyncWaiter(self._exchange)

    @overload
    def infer(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age_s: float | None = None,
        repeatable: bool = False,
        copy: Literal[True] = True,
    ) -> Any: ...

    @overload
    def infer(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age_s: float | None = None,
        repeatable: bool = False,
        copy: Literal[False],
    ) -> LentReply: ...

    def infer(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age_s: float | None = None,
        repeatable: bool = False,
        copy: bool = True,
    ) -> Any:
        """Ask the model; returns what it returned, arrays owned and writable.

        An observation is a tree of dict, list, tuple, str, bytes, int, float, bool, None, numpy arrays
        and tensors; instances of their subclasses are carried by value. With `max_age_s`, one that is older when its turn comes is answered ObservationStale and not
        inferred; its age counts from `capture_time` (time.monotonic() seconds; default: now).
        `repeatable` lets a stateful policy run the request again if an engine or daemon dies under it.

        With `copy=False` the result is a context manager that gives read-only arrays in the reply slot,
        valid inside its block.

        Raises RequestTimeout, InferenceFailed, RequestRejected (UnsupportedType, ObservationTooLarge,
        ObservationStale), ServiceUnavailable (ServiceRestarted), EngineLost, SlotsExhausted, ClientClosed.
        """
        if capture_time is None and max_age_s is None and not repeatable:
            terms = _INFER
        else:
            terms = _terms(capture_time, max_age_s, Flag.REPEATABLE if repeatable else 0)
        pending = self._ask(observation, terms, timeout, not copy)
        return pending._result if copy else LentReply(self._exchange, pending)

    async def infer_async(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age_s: float | None = None,
        repeatable: bool = False,
    ) -> Any:
        """As `infer`, for an event loop: other tasks run while the model does. Cancelling abandons the request."""
        now_ns = time.monotonic_ns()
        terms = _terms(capture_time, max_age_s, Flag.REPEATABLE if repeatable else 0)
        return await self._async_waiter.infer(observation, terms, now_ns, self._deadline_ns(now_ns, timeout))

    def submit(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age_s: float | None = None,
        supersede: bool = False,
    ) -> Pending:
        """Send without waiting for the result; up to `slots` requests can be out.

        With `supersede`, requests of this client that have not begun are answered RequestSuperseded.
        Raises SlotsExhausted when no slot became free within the timeout.
        """
        now_ns = time.monotonic_ns()
        pending = Pending(self._exchange, now_ns, self._deadline_ns(now_ns, timeout))
        terms = _terms(capture_time, max_age_s, Flag.SUPERSEDE if supersede else 0)
        try:
            self._exchange.publish(pending, observation, terms)
        except BaseException:
            self._exchange.abandon(pending)  # Ctrl-C when it was out already: nobody has it to wait for
            raise
        return pending

    def loan(
        self,
        example: dict[str, Any],
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age_s: float | None = None,
    ) -> LoanedObservation:
        """Borrow the next request slot, laid out for observations like `example` (its values are copied in).

        Its arrays are slot memory: a camera driver writes into them, `send()` publishes without a copy.
        """
        if not issubclass(type(example), dict):
            raise RequestRejected(f"a loan is made for a dict, not for {type(example).__name__}")
        timeout_ns = self._deadline_ns(0, timeout)
        terms = _terms(capture_time, max_age_s, 0)
        slot, tree = self._exchange.borrow(example, self._deadline_ns(time.monotonic_ns(), timeout))
        return LoanedObservation(self._exchange, slot, tree, terms, timeout_ns)

    def reset(self, *, timeout: float | None = None) -> None:
        """Tell the policy that this client begins a new episode; it keeps its place among the requests."""
        self._ask(None, Terms(Kind.RESET, Flag.REPEATABLE), timeout).result()

    def connect(self, *, timeout: float | None = None) -> ShmClient:
        """Attach now rather than with the first request; returns itself."""
        self._exchange.connect(self._deadline_ns(time.monotonic_ns(), timeout))
        return self

    def check(self, example: Any) -> None:
        """Compare an observation with what the model was declared to take, before anything moves.

        Raises ContractMismatch listing the differences entry by entry; returns if there are none, or if
        the model has no example observation and so declares nothing.
        """
        check_observation(self._exchange.name, self.metadata, example)

    @property
    def metadata(self) -> dict[str, Any]:
        """The service's model: name, version, device, what it takes and gives, and its own metadata."""
        model = self._exchange.describe(self._deadline_ns(time.monotonic_ns(), None))["model"]
        if model is None:
            raise ServiceUnavailable(
                f"service {self._exchange.name!r} has no model ready; shmserve-admin status tells why"
            )
        return model  # type: ignore[no-any-return]

    def on_model_change(self, callback: OnModelChange) -> OnModelChange:
        """Call `callback(before, after)` when a reply is the first one of another model version; returns `callback`.

        The versions are those of `Reply.model_version`. It is called in the thread that asks for the result (for
        `infer_async` in the event loop), just before it gets it; `metadata` describes the new model by then. An
        exception of the callback is logged. What the client did not see is no change: of two updates between two
        replies there is one call, of an update that was taken back before the next reply none.
        """
        if not callable(callback):
            raise InvalidArgument(
                f"on_model_change({callback!r}): a function of the versions before and after is needed"
            )
        self._exchange.watch_model().add(callback)
        return callback

    @property
    def last_reply(self) -> Reply | None:
        """Timing and model version of the latest reply; None before the first."""
        last = self._exchange.last
        return Reply.of(*last) if last is not None else None

    @property
    def late_replies(self) -> int:
        """Replies that came after their deadline and were thrown away."""
        return self._exchange.late_replies

    def close(self) -> None:
        """Give the channel back; requests that are out end with ClientClosed. May be called twice.

        It may be called by any thread, by a signal handler and by a finalizer, whatever they interrupt. What an
        interrupted call or another thread still uses is closed when that has ended.
        """
        self._exchange.close()

    def __enter__(self) -> ShmClient:
        return self.connect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _infer(self, observation: Any, timeout: float | None, retry: RetryPolicy) -> Any:
        """As `infer`, with a retry policy of this call's own."""
        return self._ask(observation, _INFER, timeout, retry=retry)._result

    def _ask(
        self,
        observation: Any,
        terms: Terms,
        timeout: float | None,
        lend: bool = False,
        retry: RetryPolicy | None = None,
    ) -> Pending:
        """Publish and wait; a request that a restart of the daemon cut off is sent again where that is harmless."""
        exchange = self._exchange
        started_ns = time.monotonic_ns()
        deadline_ns = started_ns + self._timeout_ns if timeout is None else self._deadline_ns(started_ns, timeout)
        attempts = 0
        while True:
            pending = Pending(exchange, started_ns, deadline_ns, lend)
            try:
                if terms is not _INFER or lend or not exchange.ask(pending, observation):
                    exchange.publish(pending, observation, terms, retry)
                    pending.result()
                    exchange.learn(pending)
                return pending
            except ServiceRestarted:
                attempts += 1
                if exchange.stateful() is None:
                    exchange.connect(deadline_ns, retry)
                if not exchange.may_ask_again(attempts, terms, retry or exchange.retry):
                    raise
            except ServiceStopping as stopping:
                attempts += 1
                if not exchange.may_retry(stopping, attempts, deadline_ns, retry or exchange.retry):
                    raise
                exchange.pause(retry or exchange.retry)
                exchange.connect(deadline_ns, retry)
            except BaseException:
                self._exchange.abandon(pending)  # Ctrl-C, a timeout: nobody waits for this reply any more
                raise

    def _deadline_ns(self, now_ns: int, timeout: float | None) -> int:
        return now_ns + (self._timeout_ns if timeout is None else int(seconds("timeout", timeout) * 1e9))


_INFER = Terms()


def _terms(capture_time: float | None, max_age_s: float | None, flags: int) -> Terms:
    if capture_time is None and max_age_s is None:
        return Terms(flags=flags) if flags else _INFER
    capture_ns = time.monotonic_ns() if capture_time is None else int(capture_seconds(capture_time) * 1e9)
    if max_age_s is None:
        return Terms(flags=flags, capture_ns=capture_ns)
    # An age of nothing still has to travel as a number above 0, which stands for "any age".
    return Terms(flags=flags, capture_ns=capture_ns, max_age_ns=max(1, int(seconds("max_age_s", max_age_s) * 1e9)))
