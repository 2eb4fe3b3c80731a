"""ActionChunks: one action for each control step from a policy's action chunks, with a fallback.

A chunk is the policy's result for one observation: the actions of several steps, row i meant for i periods after the
observation was captured. A chunk that arrives late is joined at the row for the present moment, not at its first row.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from shmserve.errors import (
    ClientClosed,
    InvalidArgument,
    InvalidChunk,
    NoFreshAction,
    RequestRejected,
    RequestTimeout,
    ServiceUnavailable,
    ShmServeError,
)

from .arguments import capture_seconds, seconds, whole
from .background_connect import BackgroundConnect
from .chunk_aggregate import Aggregate, aggregate_chunks, checked_aggregate
from .chunk_client import ChunkClient, ChunkRequest, PendingChunk
from .chunk_continuation import Continuation
from .chunk_delay import ChunkDelay
from .chunk_rows import Chunk, find_rows, map_leaves, row_due

if TYPE_CHECKING:
    from typing_extensions import Self

Fallback = Literal["hold", "repeat_last", "zero", "raise"]

#: The pause before the first attempt to reconnect after a failure.
_RECONNECT_S = 0.02
#: `Pending.result` abandons a request at its deadline while its slot stays in use: waiting ends before that.
_BEFORE_DEADLINE_NS = 1_000_000
_POLL_S = 0.001
#: The furthest ahead that `ShmClient.expect` takes.
_FURTHEST_NS = 10_000_000_000


@dataclass(frozen=True)
class ActionStep:
    """The action of one control step, and its provenance.

    * `action`: one row of the chunk: arrays without its first dimension, which belong to the caller.
    * `fresh`: the policy's action for this very step; False: an overrun row or the fallback.
    * `source`: "chunk", "overrun", or the fallback.
    * `version`: the model that computed it, as `Reply.model_version`; None for "zero".
    * `chunk`: chunks count from 1.
    * `index`: the row in the chunk; None for "zero".
    * `age`: seconds since the observation behind it was captured.
    * `error`: the failure of the latest request, None if it succeeded.
    """

    action: Any
    fresh: bool
    source: Literal["chunk", "overrun", "hold", "repeat_last", "zero"]
    version: str | None
    chunk: int
    index: int | None
    age: float
    error: ShmServeError | None


@dataclass(frozen=True)
class ChunkStats:
    """Counts of steps and chunks.

    * `fresh`: steps with the policy's action for them.
    * `overrun`: steps with a row beyond `steps`, while the next chunk was late.
    * `fallback`: steps with the fallback's action.
    * `raised`: steps that raised NoFreshAction.
    * `skipped`: rows whose time had passed.
    * `chunks`: chunks that arrived; `late_chunks` of these after the time of their last row.
    * `version_changes`: chunks of another model version than the one before.
    * `errors`: requests that failed.
    """

    fresh: int = 0
    overrun: int = 0
    fallback: int = 0
    raised: int = 0
    skipped: int = 0
    chunks: int = 0
    late_chunks: int = 0
    version_changes: int = 0
    errors: int = 0


class ActionChunks:
    """Takes one action a step from chunks, and requests the next chunk in time. For one thread.

    * `steps`: the execution horizon: rows of a chunk to execute before the next chunk takes over.
    * `period`: seconds between two steps, by which rows are aligned. A model that states another `rate_hz` in its contract
      is refused with ContractMismatch. None counts calls of `step` instead, for a simulator that waits for its policy.
    * `max_wait`: seconds that a step waits for a chunk where it has no action; the fallback follows.
    * `fallback`: "hold" repeats the last action for ever (position control: stand still), "repeat_last" repeats it
      until its observation is `max_age` seconds old and raises from then on, "zero" gives zeros (velocity control:
      stop), "raise" raises NoFreshAction. Before the first chunk all four raise.
    * `prefetch`: request the next chunk this many steps before the current one ends; 0 requests it at the end, and
      waits. None learns it: as many steps as 95 % of the recent chunks took from their observation to their arrival,
      `steps` - 1 at most (`lead`).
    * `overrun_steps`: further rows to execute while the next chunk is late (`source` "overrun", not `fresh`).
    * `actions`: the place of the chunk in the model's result: a key, or a function. All its arrays have the rows first.
    * `aggregate`: how the rows of the previous and of the next chunk for one step combine when the next one takes over:
      "latest" takes the next one's, "weighted_average" 0.3 of the previous and 0.7 of the next (of floats; other arrays
      as "latest"), a function gets both rows (arrays of one shape and dtype, an array of the chunk at a time) and returns
      one like them. The previous chunk must have more rows than `steps`, and be of the same model.
    * `clock`: monotonic nanoseconds; for a simulator its clock.

    One request is in flight at a time. Its failure is not raised: the fallback decides, the next step requests again,
    and `ActionStep.error` is the failure. A result of another model version ends the current chunk at once. Give it a
    client that other threads do not use, or their calls delay a step. The connection to a daemon that went away is
    restored in the background. A policy that declares `real_time_chunking` gets `inference_delay` and
    `prev_chunk_left_over` with each observation, if a chunk of this policy is being executed.

        with ShmClient("arm") as client, ActionChunks(
            client, steps=8, period=0.02, max_wait=0.5, fallback="hold"
        ) as chunks:
            robot.apply(chunks.step(robot.observe).action)

    Raises InvalidArgument for an argument that has no meaning.
    """

    def __init__(
        self,
        client: ChunkClient,
        *,
        steps: int,
        period: float | None,
        max_wait: float,
        fallback: Fallback,
        max_age: float | None = None,
        prefetch: int | None = None,
        overrun_steps: int = 0,
        actions: str | Callable[[Any], Any] = "actions",
        aggregate: Aggregate = "latest",
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        steps = whole("steps", steps, 1)
        prefetch = None if prefetch is None else whole("prefetch", prefetch, 0)
        overrun_steps = whole("overrun_steps", overrun_steps, 0)
        if prefetch is not None and prefetch >= steps:
            raise InvalidArgument(f"steps = {steps}, prefetch = {prefetch}: prefetch must be less than steps")
        period = None if period is None else seconds("period", period, 1e-6, 3600.0)
        max_wait = seconds("max_wait", max_wait)
        if fallback not in get_args(Fallback):
            raise InvalidArgument(f"fallback must be one of {', '.join(get_args(Fallback))}, not {fallback!r}")
        max_age = None if max_age is None else seconds("max_age", max_age)
        if (fallback == "repeat_last") != (max_age is not None):
            raise InvalidArgument(
                f"fallback = {fallback!r}, max_age = {max_age}: repeat_last needs max_age, and no other fallback takes it"
            )
        self._client = client
        self._steps = steps
        self._executable = steps + overrun_steps
        self._period_ns = None if period is None else round(period * 1e9)
        # A simulator's clock means nothing to the engine.
        self._useful_s = None if period is None or clock is not time.monotonic_ns else self._executable * period
        self._max_wait = max_wait
        self._fallback: Fallback = fallback
        self._max_age = max_age
        self._prefetch = prefetch
        self._actions = actions
        self._aggregate = checked_aggregate(aggregate)
        self._clock = clock
        self._delay = ChunkDelay()
        self._continuation = Continuation()
        self._state_rate = getattr(client, "_state_rate", None)
        if self._state_rate is not None and self._useful_s is not None and period is not None:
            self._state_rate(1 / period)
        # A client that is not shmserve's may have no such method: then no policy gets the entries of real-time chunking.
        self._submit_continued = getattr(client, "_submit_continued", None)
        self._tick = 0
        self._in_flight: ChunkRequest | None = None
        self._abandoned: PendingChunk | None = None  # in flight when `reset` was called; its result is discarded
        self._connecting: BackgroundConnect | None = None
        self._connected = False
        self._current: Chunk | None = None
        self._next: Chunk | None = None
        self._last: ActionStep | None = None
        self._last_capture_ns = 0
        self._error: ShmServeError | None = None
        self._stats = ChunkStats()

    def step(self, observation: Any, *, capture_time: float | None = None, max_wait: float | None = None) -> ActionStep:
        """Return the action for now.

        `observation` is sent if a chunk is to be requested, and encoded before this returns; a function is called for
        it only then. `capture_time` (seconds of the clock; default: now) is when it was captured. `max_wait` replaces
        the constructor's for this step. Raises NoFreshAction by the fallback, RequestRejected for an observation that
        cannot be sent, ClientClosed.
        """
        wait_s = self._max_wait if max_wait is None else seconds("max_wait", max_wait)
        until_ns = time.monotonic_ns() + round(wait_s * 1e9)
        capture_ns = self._clock() if capture_time is None else self._capture_ns(capture_time)
        self._tick += 1
        failed_before = self._stats.errors
        while True:
            self._poll()
            found = self._select_row(self._clock())
            # After a failure in this step the next step requests again; after a reconnect, this one.
            if self._stats.errors == failed_before or isinstance(self._error, ServiceUnavailable):
                self._request_next(found, observation, capture_ns)
            if found is not None:
                self._expect_next(found)
                return self._execute(*found)
            if not self._wait_for_progress(until_ns):
                return self._fall_back(self._clock())

    def _capture_ns(self, capture_time: float) -> int:
        if self._clock is time.monotonic_ns:
            return round(capture_seconds(capture_time) * 1e9)
        return round(seconds("capture_time", capture_time, -1e9, 1e9) * 1e9)  # a simulator's clock may show anything

    def reset(self, *, timeout: float | None = None) -> None:
        """Begin a new episode: forget every chunk and the last action, and reset the policy.

        Raises as `ShmClient.reset`; the chunks are forgotten even then.
        """
        self._current = self._next = self._last = self._error = None
        if self._in_flight is not None:
            self._in_flight.pending.cancel()
            self._abandoned, self._in_flight = self._in_flight.pending, None
        try:
            self._client.reset(timeout=timeout)
        except ServiceUnavailable:
            self._connected = False
            raise

    def stats(self) -> ChunkStats:
        """Return the counts since the constructor."""
        return self._stats

    @property
    def lead(self) -> int:
        """The next chunk is requested this many steps before the current one ends: `prefetch`, or what was learned."""
        return min(self._delay.rows, self._steps - 1) if self._prefetch is None else self._prefetch

    def close(self) -> None:
        """Cancel the request in flight; the client stays open. May be called twice."""
        if self._connecting is not None:
            self._connecting.stop()
            self._connecting = None
        for pending in (self._in_flight.pending if self._in_flight else None, self._abandoned):
            if pending is not None:
                pending.cancel()
        self._in_flight = self._abandoned = None
        if self._state_rate is not None and self._useful_s is not None:
            self._state_rate(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Requests

    def _request_next(self, found: tuple[Chunk, int] | None, observation: Any, capture_ns: int) -> None:
        """Request the next chunk if it is due and no request is in flight."""
        if self._in_flight is not None or self._abandoned is not None or self._connecting is not None:
            return
        if self._next is not None or (found is not None and found[1] < self._steps - self.lead):
            return
        if not self._connected:
            self._connecting = BackgroundConnect(self._client, _RECONNECT_S if self._error is not None else 0.0)
            return
        if callable(observation):
            observation = observation()
        submit = self._client.submit
        if found is not None and self._submit_continued is not None and self._continuation.applies_to(found[0]):
            observation = self._continued(observation, *found, capture_ns)
            submit = self._submit_continued
        try:
            pending = submit(
                observation,
                timeout=self._useful_s,
                capture_time=None if self._useful_s is None else capture_ns / 1e9,
                max_age=self._useful_s,
            )
        except (RequestRejected, InvalidArgument, ClientClosed):
            raise  # a fault of this very observation, or of this client: the caller's to correct
        except ShmServeError as error:
            self._fail(error)
            return
        self._in_flight = ChunkRequest(pending, capture_ns, self._tick)

    def _continued(self, observation: Any, chunk: Chunk, index: int, capture_ns: int) -> dict[str, Any]:
        """Add the rest of the current chunk: from the row for the time of the observation on, `index` being that for now."""
        since = 0 if self._period_ns is None else row_due(self._clock() - capture_ns, self._period_ns)
        start = max(0, index - since)
        # The next chunk takes over after `steps` rows, or when it arrives; no row is executed beyond `count`.
        delay = min(max(self._steps - start, self._delay.measured_rows), chunk.count - start)
        return self._continuation.added(observation, chunk, start, delay)

    def _expect_next(self, found: tuple[Chunk, int]) -> None:
        """Tell the client, if it takes that, that the next step requests a chunk."""
        if self._in_flight is not None or self._next is not None or not self._connected or self._period_ns is None:
            return
        if self._connecting is not None:
            return
        # A simulator's clock says nothing of the time until the next step.
        if found[1] + 1 != self._steps - self.lead or self._useful_s is None or self._period_ns > _FURTHEST_NS:
            return
        expect = getattr(self._client, "expect", None)
        if expect is not None:
            with contextlib.suppress(ShmServeError):  # the request will say so
                expect(self._period_ns / 1e9)

    def _wait_for_progress(self, until_ns: int) -> bool:
        """Wait until the request in flight or the connection attempt ends; False: not by `until_ns`."""
        if self._connecting is not None:
            return self._connecting.wait(until_ns)
        pending = self._abandoned if self._in_flight is None else self._in_flight.pending
        if pending is None:
            return False
        wait_ns = min(until_ns, pending.deadline_ns - _BEFORE_DEADLINE_NS) - time.monotonic_ns()
        if wait_ns > 0:
            with contextlib.suppress(ShmServeError):  # the request failed, which `_poll` finds, or the wait ended
                pending.result(wait_ns / 1e9)
        while not pending.done():
            if time.monotonic_ns() >= until_ns:
                return False
            time.sleep(_POLL_S)
        return True

    def _poll(self) -> None:
        """Process every request and connection attempt that has ended, without waiting."""
        if self._connecting is not None and self._connecting.ended:
            connecting, self._connecting = self._connecting, None
            if not self._connected:
                self._delay.begin_connection()
            self._connected = connecting.error is None
            self._continuation.note(connecting.model)
            if connecting.error is not None:
                self._fail(connecting.error)
        elif self._connecting is not None and self._connecting.unreachable is not None:
            self._error = self._connecting.unreachable
        if self._abandoned is not None and self._abandoned.done():
            self._abandoned = None
        if self._in_flight is None or not self._in_flight.pending.done():
            return
        request, self._in_flight = self._in_flight, None
        try:
            rows, count = find_rows(request.pending.result(0), self._actions, self._steps)
        except ShmServeError as error:
            self._fail(error)
            return
        reply = request.pending.reply
        version = "" if reply is None else reply.model_version
        self._count(chunks=1)
        self._error = None
        if self._current is not None and self._current.version != version:
            self._current = None  # the plan of another model is not continued
            self._count(version_changes=1)
        executable = min(count, self._executable)
        self._next = Chunk(rows, count, executable, version, self._stats.chunks, request.capture_ns, request.tick)
        self._delay.add(self._row_now(self._next, self._clock()), version)
        if self._submit_continued is not None and not self._continuation.knows(version):
            # Of a new model it must be known what it takes. Its description is asked for beside the steps.
            self._connecting = BackgroundConnect(self._client)

    def _fail(self, error: ShmServeError) -> None:
        self._error = error
        self._count(errors=1)
        if isinstance(error, ClientClosed):
            raise error
        if isinstance(error, ServiceUnavailable):
            self._connected = False

    # Actions

    def _select_row(self, now_ns: int) -> tuple[Chunk, int] | None:
        """Return the chunk and the row for now, or None."""
        current = self._current
        index = self._executable if current is None else self._row_now(current, now_ns)
        if index < self._steps:
            assert current is not None
            return current, index
        if self._next is not None:
            chunk, self._next = self._next, None
            row = self._row_now(chunk, now_ns)
            if row < chunk.count:
                try:
                    if current is not None and current.is_continuous:
                        current.is_continuous = False  # an own function may raise: then this step has no action
                        aggregate_chunks(self._aggregate, current, index, chunk, row)
                except InvalidChunk as error:
                    self._fail(error)
                    return (current, index) if current is not None and index < current.count else None
                self._current = chunk
                return chunk, row
            self._count(late_chunks=1)
            self._error = RequestTimeout(
                f"the chunk arrived {(now_ns - chunk.capture_ns) / 1e9:.3g} s after its observation was captured, past "
                f"the time of its {chunk.count} executable rows: request it earlier (prefetch), execute more rows "
                "(steps, overrun_steps), or count calls (period = None)"
            )
            self._count(errors=1)
        if current is not None and index < current.count:
            return current, index
        return None

    def _row_now(self, chunk: Chunk, now_ns: int) -> int:
        due = (
            self._tick - chunk.tick if self._period_ns is None else row_due(now_ns - chunk.capture_ns, self._period_ns)
        )
        # Never the same row twice: a loop that is a little fast must not apply an increment again.
        return max(due, chunk.used + 1)

    def _execute(self, chunk: Chunk, index: int) -> ActionStep:
        fresh = index < self._steps
        self._count(skipped=index - chunk.used - 1, fresh=int(fresh), overrun=int(not fresh))
        chunk.used = index
        self._last_capture_ns = chunk.capture_ns
        self._last = ActionStep(
            map_leaves(chunk.rows, lambda rows: np.array(rows[index])),
            fresh,
            "chunk" if fresh else "overrun",
            chunk.version,
            chunk.number,
            index,
            self._age(self._clock()),
            self._error,
        )
        # The copy kept for the fallback must not change when the caller writes to its action.
        return replace(self._last, action=map_leaves(self._last.action, np.array))

    def _fall_back(self, now_ns: int) -> ActionStep:
        if self._current is not None:
            self._current.is_continuous = False
        last, age = self._last, self._age(now_ns)
        too_old = self._max_age is not None and age > self._max_age
        if last is None or self._fallback == "raise" or too_old:
            self._count(raised=1)
            if last is None:
                fault = "no chunk has arrived yet"
            elif too_old:
                fault = f"the last action's observation is {age:.3g} s old, max_age = {self._max_age}"
            else:
                fault = "no chunk has an action for this step"
            raise NoFreshAction(f"{fault}; {self._reason()}") from self._error
        self._count(fallback=1)
        step = replace(last, fresh=False, age=age, error=self._error)
        if self._fallback == "zero":
            action = map_leaves(last.action, np.zeros_like)
            return replace(step, action=action, source="zero", version=None, index=None)
        source: Literal["hold", "repeat_last"] = "hold" if self._fallback == "hold" else "repeat_last"
        return replace(step, action=map_leaves(last.action, np.array), source=source)

    def _reason(self) -> str:
        if self._error is not None:
            return str(self._error)
        if self._in_flight is not None:
            return "the next chunk was requested and has not arrived within max_wait"
        return "the client is connecting to the service" if self._connecting is not None else "none was requested"

    def _age(self, now_ns: int) -> float:
        return (now_ns - self._last_capture_ns) / 1e9

    def _count(self, **more: int) -> None:
        stats = self._stats
        self._stats = replace(stats, **{name: getattr(stats, name) + value for name, value in more.items() if value})
