"""Handle of a submitted request, with the meaning of `concurrent.futures.Future`, and its reply.

A Pending knows its pipeline by a protocol only. `RequestTable` completes it: no other class writes its outcome.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

from shmserve.errors import RequestCancelled, ShmServeError
from shmserve.layout import number_of
from shmserve.protocol import Flag
from shmserve.ring import ReplyHead

from .arguments import seconds
from .model_unchecked import ModelUnchecked
from .task_waker import TaskWaker

log = logging.getLogger(__name__)

_FOREVER_NS = 1 << 62
_SOURCES = {Flag.REMOTE: "remote", Flag.FALLBACK: "fallback"}


class RequestOwner(Protocol):
    """The pipeline of a request, as its Pending sees it."""

    def wait(self, pending: Pending, until_ns: int) -> None:
        """Return once `pending` is completed; raise RequestTimeout at `until_ns`, if that is before its deadline."""

    def poll(self, pending: Pending) -> bool:
        """Process arrived replies without blocking; return whether `pending` is completed."""

    def cancel(self, pending: Pending) -> bool:
        """Withdraw the request if no engine has taken it; return whether it is withdrawn."""

    def is_running(self, pending: Pending) -> bool:
        """Return whether an engine has taken the request and not answered it."""

    def notify(self, pending: Pending) -> None:
        """Complete `pending` in the background, then call its `_run_callbacks`."""

    def release_reply(self, sequence: int) -> None:
        """Let the slot of a reply on loan be used again."""

    def check_owner(self) -> None:
        """Raise ClientForked in a forked child."""


@dataclass(frozen=True)
class RequestTiming:
    """Duration of each stage of a request, in microseconds.

    * `round_trip_us`: from before the observation was encoded until the result was decoded.
    * `queued_us`: from publication until the engine took the request.
    * `staged_us`: checked and copied in; reading the slot in place leaves only the check.
    * `infer_us`: the model, with the whole batch it ran in.
    * `copied_us`: the result encoded into the reply slot.
    """

    round_trip_us: float
    queued_us: float
    staged_us: float
    infer_us: float
    copied_us: float


@dataclass(frozen=True)
class Reply:
    """The result of a request, the model that computed it, and the duration of each stage.

    * `action`: the model's result: its structure, with numpy arrays of its shapes and dtypes; None for a request that failed.
    * `timing`: the duration of each stage.
    * `model_version`: 16 hex digits, as `shmserve-admin status` shows it.
    * `request_id`: requests of a client count from 1.
    * `in_place`: the model read the slot itself.
    * `clamped`: a number of the observation or the action was brought back to the range that the model declares.
    * `source`: who computed it: "local", or of a link to another machine "remote" or "fallback" (the package inside the link).
    """

    action: Any
    timing: RequestTiming
    model_version: str
    request_id: int
    in_place: bool
    clamped: bool
    source: str = "local"


@dataclass(slots=True, eq=False, repr=False)
class Pending:
    """A request of `submit`: a Future, which can be awaited as well."""

    _owner: RequestOwner
    _started_ns: int
    #: CLOCK_MONOTONIC nanoseconds; fixed by `submit`.
    deadline_ns: int
    #: The thread that reads the result in its slot until the loan ends; 0: the result is copied.
    _loan_thread: int = 0
    #: 0 before the request is published.
    sequence: int = 0
    _head: ReplyHead | None = None
    _result: Any = None
    _error: ShmServeError | None = None
    #: When it was completed; 0 before, so this is written last.
    _completed_ns: int = 0
    _callbacks: tuple[Callable[[Pending], object], ...] = ()

    def done(self) -> bool:
        """Return whether `result` would return or raise at once."""
        return self._completed_ns != 0 or self._owner.poll(self)

    def running(self) -> bool:
        """Return whether an engine has begun to serve the request, so that it cannot be cancelled any longer."""
        return not self.done() and self._owner.is_running(self)

    def cancelled(self) -> bool:
        """Return whether the request was cancelled before it ran."""
        return self.done() and type(self._error) is RequestCancelled

    def result(self, timeout: float | None = None) -> Any:
        """Return what the model returned; arrays are the caller's own.

        `timeout` (seconds) ends this wait, not the request, whose deadline was fixed by `submit`: then RequestTimeout is
        raised, `done` stays false and `result` may be called again. The deadline completes the request with RequestTimeout.
        Raises RequestTimeout, or the error that the request ended with: InferenceFailed, RequestRejected, ...
        """
        self._wait(timeout)
        if self._error is not None:
            raise self._error
        return self._result

    def exception(self, timeout: float | None = None) -> ShmServeError | None:
        """Return the error that the request ended with, or None if it has a result.

        Raises RequestCancelled if it was cancelled, and RequestTimeout as `result` where only this wait ended.
        """
        self._wait(timeout)
        if type(self._error) is RequestCancelled:
            raise self._error
        return self._error

    def _wait(self, timeout: float | None) -> None:
        timeout_s = None if timeout is None else seconds("timeout", timeout)
        until_ns = self.deadline_ns if timeout_s is None else time.monotonic_ns() + int(timeout_s * 1e9)
        self._owner.wait(self, min(until_ns, self.deadline_ns))

    def cancel(self) -> bool:
        """Withdraw the request, as `concurrent.futures.Future.cancel`.

        True: no engine had taken it, it never runs, and `result` raises RequestCancelled, now and later; so again for a
        request that was withdrawn before. False: an engine has taken it, and `result` returns its result, or raises
        RequestCancelled if the engine took it in this very moment and did not run it; or it has ended, with a result or an
        error; or it was lost, with its daemon or to its deadline.
        """
        return self._owner.cancel(self)

    def add_done_callback(self, callback: Callable[[Pending], object]) -> None:
        """Call `callback(pending)` once the request has ended, at once if it has already.

        A background thread of the client calls it, outside every lock; an exception of the callback is logged.
        """
        if self._completed_ns:
            self._call(callback)
            return
        self._callbacks = (*self._callbacks, callback)
        self._owner.notify(self)

    def _run_callbacks(self) -> None:
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            self._call(callback)

    def _call(self, callback: Callable[[Pending], object]) -> None:
        try:
            callback(self)
        except Exception:
            log.exception("%r of %r failed", callback, self)

    def __await__(self) -> Generator[Any, None, Any]:
        """Await the result. Cancelling the waiting task leaves the request alone."""
        return self._result_in_loop().__await__()

    async def _result_in_loop(self) -> Any:
        if not self.done():
            waker = TaskWaker(asyncio.get_running_loop())
            self.add_done_callback(lambda pending: waker.wake())
            while not self._completed_ns:
                await waker.wait(_FOREVER_NS)
        if type(self._error) is ModelUnchecked:  # the daemon is to be asked, which must not hold the loop
            await asyncio.get_running_loop().run_in_executor(None, self._wait, None)
        return self.result()

    @property
    def reply(self) -> Reply | None:
        """The result with its timing and model version; None until the request is answered."""
        head = self._head
        if head is None:
            return None
        return Reply(
            self._result,
            RequestTiming(
                (self._completed_ns - self._started_ns) / 1e3,
                head.queued_ns / 1e3,
                head.staged_ns / 1e3,
                head.infer_ns / 1e3,
                head.copied_ns / 1e3,
            ),
            f"{head.version:016x}",
            number_of(head.sequence),
            bool(head.flags & Flag.IN_PLACE),
            bool(head.flags & Flag.CLAMPED),
            _SOURCES.get(head.flags & (Flag.REMOTE | Flag.FALLBACK), "local"),
        )

    @property
    def request_id(self) -> int:
        """The number of the request: requests of a client count from 1; 0 before it is published."""
        return number_of(self.sequence)

    def __repr__(self) -> str:
        """Show the request's number and state, without asking anything.

        >>> Pending(None, 0, 0)
        <Pending #0 pending>
        """
        state = "pending"
        if self._completed_ns:
            state = "done" if self._error is None else type(self._error).__name__
        return f"<Pending #{self.request_id} {state}>"
