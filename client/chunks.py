"""ActionChunks: one action for each control step out of a policy's action chunks, and a rule for when there is none.

A chunk is what a policy answers one observation with: the actions of several steps, row i meant for i periods after
the observation was captured. A chunk that comes late is joined where the time is, not at its beginning.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

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
from .parking_lot import ParkingLot
from .reply import Reply

if TYPE_CHECKING:
    from typing_extensions import Self

Fallback = Literal["hold", "repeat_last", "zero", "raise"]

#: One attempt to reach a daemon that is not there, and the pause before the next.
_ATTACH_S = 0.5
_PAUSE_S = 0.02
#: `Pending.result` gives a request up at its deadline, and its slot would stay taken unseen: stop waiting before that.
_BEFORE_DEADLINE_NS = 1_000_000
_LOOK_S = 0.001


@dataclass(frozen=True)
class ActionStep:
    """What to do in one control step, and how far to trust it."""

    action: Any  # one row of the chunk: arrays of the caller's own
    fresh: bool  # the policy's action for this very step; False: something stands in for it
    source: Literal["chunk", "spare", "hold", "repeat_last", "zero"]
    version: str | None  # the model that computed it, as `Reply.model_version`; None for "zero"
    chunk: int  # chunks count from 1
    index: int | None  # its row in the chunk; None for "zero"
    age_s: float  # since the observation behind it was captured
    error: ShmServeError | None  # what went wrong with the latest request, None if nothing did


@dataclass(frozen=True)
class ChunkStats:
    """What has become of the steps and chunks so far."""

    fresh: int = 0  # steps with an action of their own
    spare: int = 0  # steps with one from beyond `steps`, while the next chunk was late
    stood_in: int = 0  # steps with the fallback's action
    refused: int = 0  # steps that raised NoFreshAction
    skipped: int = 0  # rows whose time had passed
    chunks: int = 0  # chunks that arrived
    late_chunks: int = 0  # of these, those that came when the time of their last row had passed
    version_changes: int = 0
    errors: int = 0  # requests that failed


class AnsweredLater(Protocol):
    """What is asked of a `Pending`."""

    deadline_ns: int

    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> Any: ...
    def cancel(self) -> bool: ...
    @property
    def reply(self) -> Reply | None: ...


class AsksModel(Protocol):
    """What is asked of a `ShmClient`."""

    def connect(self, *, timeout: float | None = None) -> Any: ...
    def submit(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age_s: float | None = None,
    ) -> AnsweredLater: ...
    def reset(self, *, timeout: float | None = None) -> None: ...


def row_due(elapsed_ns: int, period_ns: int) -> int:
    """The row of a chunk that is meant for `elapsed_ns` after its observation: the nearest, so that jitter is harmless.

    >>> [row_due(elapsed_ns, 20) for elapsed_ns in (-3, 0, 9, 10, 29, 30, 400)]
    [0, 0, 0, 1, 1, 2, 20]
    """
    return max(0, (2 * elapsed_ns + period_ns) // (2 * period_ns))


class ActionChunks:
    """Takes one action a step out of chunks; asks for the next chunk in time. For one thread.

    `steps`: rows of a chunk to execute before the next chunk takes over.
    `period_s`: the time between two steps, by which rows are aligned. None counts calls of `step` instead, for a
    simulator that waits for its policy.
    `wait_s`: how long a step waits for a chunk where it has no action. Then the fallback decides.
    `fallback`: "hold" repeats the last action for ever (position control: stand still), "repeat_last" repeats it
    until its observation is `max_age_s` old and raises from then on, "zero" gives zeros (velocity control: stop),
    "raise" raises NoFreshAction. Before the first chunk there is nothing to repeat, and each of them raises.
    `prefetch`: ask for the next chunk with the observation of so many steps before the current one is used up; 0 asks
    when it is used up, and waits.
    `spare_steps`: further rows that may be used while the next chunk is late (`source` "spare", not `fresh`).
    `actions`: where in the model's answer the chunk is: a key, or a function. Every array in it has the rows first.
    `clock`: monotonic nanoseconds; a simulator's own clock goes here.

    One request is out at a time. Its failure is not raised: the rule decides, the next step asks again, and
    `ActionStep.error` tells. An answer of another model version ends the current chunk at once. A client of its own
    keeps a step from waiting for what other threads do; a daemon that went away is looked for in the background.
    """

    def __init__(
        self,
        client: AsksModel,
        *,
        steps: int,
        period_s: float | None,
        wait_s: float,
        fallback: Fallback,
        max_age_s: float | None = None,
        prefetch: int = 0,
        spare_steps: int = 0,
        actions: str | Callable[[Any], Any] = "actions",
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        steps, prefetch = whole("steps", steps, 1), whole("prefetch", prefetch, 0)
        spare_steps = whole("spare_steps", spare_steps, 0)
        if prefetch >= steps:
            raise InvalidArgument(f"steps = {steps}, prefetch = {prefetch}: prefetch must be less than steps")
        period_s = None if period_s is None else seconds("period_s", period_s, 1e-6, 3600.0)
        wait_s = seconds("wait_s", wait_s)
        if fallback not in get_args(Fallback):
            raise InvalidArgument(f"fallback = {fallback!r} is none of {', '.join(get_args(Fallback))}")
        max_age_s = None if max_age_s is None else seconds("max_age_s", max_age_s)
        if (fallback == "repeat_last") != (max_age_s is not None):
            raise InvalidArgument(
                f"fallback = {fallback!r}, max_age_s = {max_age_s}: repeat_last, and only it, needs an age"
            )
        self._client = client
        self._steps = steps
        self._usable = steps + spare_steps
        self._period_ns = None if period_s is None else round(period_s * 1e9)
        # A simulator's clock means nothing to the engine.
        self._useful_s = None if period_s is None or clock is not time.monotonic_ns else self._usable * period_s
        self._wait_s = wait_s
        self._fallback: Fallback = fallback
        self._max_age_s = max_age_s
        self._prefetch = prefetch
        self._actions = actions
        self._clock = clock
        self._tick = 0
        self._asked: _Asked | None = None
        self._disowned: AnsweredLater | None = None  # out when `reset` came; nobody wants its answer
        self._attaching: _Attaching | None = None
        self._attached = False
        self._current: _Chunk | None = None
        self._next: _Chunk | None = None
        self._last: ActionStep | None = None
        self._last_capture_ns = 0
        self._error: ShmServeError | None = None
        self._stats = ChunkStats()

    def step(self, observation: Any, *, capture_time: float | None = None, wait_s: float | None = None) -> ActionStep:
        """The action for now.

        `observation` is sent if a chunk is to be asked for, and encoded before this returns; a function is called for
        it only then. `capture_time` (seconds of the clock; default: now) is when it was captured. `wait_s` is for this
        step. Raises NoFreshAction by the rule, RequestRejected for an observation that cannot be sent, ClientClosed.
        """
        until_ns = time.monotonic_ns() + round((self._wait_s if wait_s is None else seconds("wait_s", wait_s)) * 1e9)
        capture_ns = self._clock() if capture_time is None else self._capture_ns(capture_time)
        self._tick += 1
        failed_before = self._stats.errors
        while True:
            self._collect()
            found = self._due(self._clock())
            # What failed in this step is asked again in the next; a daemon that is back, at once.
            if self._stats.errors == failed_before or isinstance(self._error, ServiceUnavailable):
                self._ask_ahead(found, observation, capture_ns)
            if found is not None:
                return self._take(*found)
            if not self._wait(until_ns):
                return self._stand_in(self._clock())

    def _capture_ns(self, capture_time: float) -> int:
        if self._clock is time.monotonic_ns:
            return round(capture_seconds(capture_time) * 1e9)
        return round(seconds("capture_time", capture_time, -1e9, 1e9) * 1e9)  # a simulator's clock may show anything

    def reset(self, *, timeout: float | None = None) -> None:
        """Begin a new episode: forget every chunk and the last action, and tell the policy.

        Raises as `ShmClient.reset`; the chunks are forgotten even then.
        """
        self._current = self._next = self._last = self._error = None
        if self._asked is not None:
            self._asked.pending.cancel()
            self._disowned, self._asked = self._asked.pending, None
        try:
            self._client.reset(timeout=timeout)
        except ServiceUnavailable:
            self._attached = False
            raise

    def stats(self) -> ChunkStats:
        """Counts since it was made."""
        return self._stats

    def close(self) -> None:
        """Withdraw what is out; the client stays open. May be called twice."""
        if self._attaching is not None:
            self._attaching.stop()
            self._attaching = None
        for pending in (self._asked.pending if self._asked else None, self._disowned):
            if pending is not None:
                pending.cancel()
        self._asked = self._disowned = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Asking

    def _ask_ahead(self, found: tuple[_Chunk, int] | None, observation: Any, capture_ns: int) -> None:
        """Ask for the next chunk if it is time to and nothing is out."""
        if self._asked is not None or self._disowned is not None or self._attaching is not None:
            return
        if self._next is not None or (found is not None and found[1] < self._steps - self._prefetch):
            return
        if not self._attached:
            self._attaching = _Attaching(self._client, _PAUSE_S if self._error is not None else 0.0)
            return
        if callable(observation):
            observation = observation()
        try:
            pending = self._client.submit(
                observation,
                timeout=self._useful_s,
                capture_time=None if self._useful_s is None else capture_ns / 1e9,
                max_age_s=self._useful_s,
            )
        except (RequestRejected, InvalidArgument, ClientClosed):
            raise  # this very observation, or this client: the caller's to put right
        except ShmServeError as error:
            self._fail(error)
            return
        self._asked = _Asked(pending, capture_ns, self._tick)

    def _wait(self, until_ns: int) -> bool:
        """Until what is out has come to something (True) or the time is over (False)."""
        if self._attaching is not None:
            return self._attaching.wait(until_ns)
        pending = self._disowned if self._asked is None else self._asked.pending
        if pending is None:
            return False
        wait_ns = min(until_ns, pending.deadline_ns - _BEFORE_DEADLINE_NS) - time.monotonic_ns()
        if wait_ns > 0:
            with contextlib.suppress(ShmServeError):  # either it ended so, and `_collect` finds it, or the wait did
                pending.result(wait_ns / 1e9)
        while not pending.done():
            if time.monotonic_ns() >= until_ns:
                return False
            time.sleep(_LOOK_S)
        return True

    def _collect(self) -> None:
        """Take note of whatever has ended."""
        if self._attaching is not None and self._attaching.ended:
            attaching, self._attaching = self._attaching, None
            self._attached = attaching.error is None
            if attaching.error is not None:
                self._fail(attaching.error)
        elif self._attaching is not None and self._attaching.unreachable is not None:
            self._error = self._attaching.unreachable
        if self._disowned is not None and self._disowned.done():
            self._disowned = None
        if self._asked is None or not self._asked.pending.done():
            return
        asked, self._asked = self._asked, None
        try:
            answer = asked.pending.result(0)
            rows, count = _rows(answer, self._actions, self._steps)
        except ShmServeError as error:
            self._fail(error)
            return
        reply = asked.pending.reply
        version = "" if reply is None else reply.model_version
        self._count(chunks=1)
        self._error = None
        if self._current is not None and self._current.version != version:
            self._current = None  # what another model planned is not carried on
            self._count(version_changes=1)
        self._next = _Chunk(rows, min(count, self._usable), version, self._stats.chunks, asked.capture_ns, asked.tick)

    def _fail(self, error: ShmServeError) -> None:
        self._error = error
        self._count(errors=1)
        if isinstance(error, ClientClosed):
            raise error
        if isinstance(error, ServiceUnavailable):
            self._attached = False

    # Taking

    def _due(self, now_ns: int) -> tuple[_Chunk, int] | None:
        """The chunk and the row for now; None if there is none."""
        current = self._current
        index = self._usable if current is None else self._row(current, now_ns)
        if index < self._steps:
            assert current is not None
            return current, index
        if self._next is not None:
            chunk, self._next = self._next, None
            row = self._row(chunk, now_ns)
            if row < chunk.count:
                self._current = chunk
                return chunk, row
            self._count(late_chunks=1)
            self._error = RequestTimeout(
                f"the chunk came {(now_ns - chunk.capture_ns) / 1e9:.3g} s after its observation was captured, when "
                f"the time of its {chunk.count} usable rows had passed: ask earlier (prefetch), use more of its rows "
                "(steps, spare_steps), or count calls (period_s = None)"
            )
            self._count(errors=1)
        if current is not None and index < current.count:
            return current, index
        return None

    def _row(self, chunk: _Chunk, now_ns: int) -> int:
        due = (
            self._tick - chunk.tick if self._period_ns is None else row_due(now_ns - chunk.capture_ns, self._period_ns)
        )
        # Never the same row twice: a loop that is a little fast must not apply an increment again.
        return max(due, chunk.used + 1)

    def _take(self, chunk: _Chunk, index: int) -> ActionStep:
        fresh = index < self._steps
        self._count(skipped=index - chunk.used - 1, fresh=int(fresh), spare=int(not fresh))
        chunk.used = index
        self._last_capture_ns = chunk.capture_ns
        self._last = ActionStep(
            _mapped(chunk.rows, lambda rows: np.array(rows[index])),
            fresh,
            "chunk" if fresh else "spare",
            chunk.version,
            chunk.number,
            index,
            self._age_s(self._clock()),
            self._error,
        )
        # What is kept for the fallback must not change when the caller changes what it was given.
        return replace(self._last, action=_mapped(self._last.action, np.array))

    def _stand_in(self, now_ns: int) -> ActionStep:
        last, age_s = self._last, self._age_s(now_ns)
        too_old = self._max_age_s is not None and age_s > self._max_age_s
        if last is None or self._fallback == "raise" or too_old:
            self._count(refused=1)
            if last is None:
                what = "no chunk has come yet"
            elif too_old:
                what = f"the last action's observation is {age_s:.3g} s old, max_age_s = {self._max_age_s}"
            else:
                what = "no chunk has an action for this step"
            raise NoFreshAction(f"{what}; {self._reason()}") from self._error
        self._count(stood_in=1)
        step = replace(last, fresh=False, age_s=age_s, error=self._error)
        if self._fallback == "zero":
            action = _mapped(last.action, np.zeros_like)
            return replace(step, action=action, source="zero", version=None, index=None)
        source: Literal["hold", "repeat_last"] = "hold" if self._fallback == "hold" else "repeat_last"
        return replace(step, action=_mapped(last.action, np.array), source=source)

    def _reason(self) -> str:
        if self._error is not None:
            return str(self._error)
        if self._asked is not None:
            return "the next is asked for and has not come within wait_s"
        return "the service is being looked for" if self._attaching is not None else "none is asked for"

    def _age_s(self, now_ns: int) -> float:
        return (now_ns - self._last_capture_ns) / 1e9

    def _count(self, **more: int) -> None:
        stats = self._stats
        self._stats = replace(stats, **{name: getattr(stats, name) + value for name, value in more.items() if value})


@dataclass
class _Asked:
    pending: AnsweredLater
    capture_ns: int
    tick: int  # the step that asked


@dataclass
class _Chunk:
    rows: Any
    count: int  # rows that may be used
    version: str
    number: int
    capture_ns: int
    tick: int
    used: int = -1  # the last row that was taken


class _Attaching:
    """Looks for the daemon in a thread, because that may take as long as it is away."""

    def __init__(self, client: AsksModel, pause_s: float) -> None:
        self._client = client
        self._pause_s = pause_s
        self._stopped = False
        # Not threading.Event, whose lock a signal handler would find held by the call that it interrupts.
        self._parking_lot = ParkingLot()
        self.ended = False
        #: What ended the search, None if the client is attached.
        self.error: ShmServeError | None = None
        #: What the latest attempt ran into.
        self.unreachable: ServiceUnavailable | None = None
        try:
            threading.Thread(target=self._run, name="shmserve-attach", daemon=True).start()
        except RuntimeError as error:
            # Not ServiceUnavailable, after which a step looks again at once.
            self.error = ShmServeError(
                f"ActionChunks look for the service in a thread, and there is none to be had ({error}): end threads, or "
                "raise the limit (ulimit -u, TasksMax=)"
            )
            self.ended = True

    def wait(self, until_ns: int) -> bool:
        """Whether the search has ended, by then at the latest."""
        while not self.ended and time.monotonic_ns() < until_ns:
            self._parking_lot.park(until_ns)
        return self.ended

    def stop(self) -> None:
        self._stopped = True
        self._parking_lot.unpark_all()

    def _run(self) -> None:
        until_ns = time.monotonic_ns() + round(self._pause_s * 1e9)
        try:
            while True:
                while not self._stopped and time.monotonic_ns() < until_ns:
                    self._parking_lot.park(until_ns)
                if self._stopped:
                    return
                try:
                    self._client.connect(timeout=_ATTACH_S)
                    return
                except ServiceUnavailable as error:
                    self.unreachable = error
                until_ns = time.monotonic_ns() + round(_PAUSE_S * 1e9)
        except ShmServeError as error:  # not one that passes: another wire version, a closed client
            self.error = error
        finally:
            self.ended = True
            self._parking_lot.unpark_all()


def _rows(answer: Any, actions: str | Callable[[Any], Any], steps: int) -> tuple[Any, int]:
    """The chunk in a model's answer, and how many rows it has; raises InvalidChunk."""
    if callable(actions):
        chunk = actions(answer)
    elif isinstance(answer, dict) and actions in answer:
        chunk = answer[actions]
    else:
        held = ", ".join(map(str, answer)) if isinstance(answer, dict) else f"a {type(answer).__name__}"
        raise InvalidChunk(f"the model's answer holds no {actions!r} but {held}: say with actions= where its chunk is")
    counts = set()
    for leaf in _leaves(chunk):
        if not isinstance(leaf, np.ndarray) or not leaf.ndim:
            raise InvalidChunk(
                f"a chunk is made of arrays with the rows first, not of {type(leaf).__name__} ({leaf!r:.40})"
            )
        counts.add(leaf.shape[0])
    if len(counts) != 1 or min(counts) < steps:
        raise InvalidChunk(f"the arrays of the chunk have {sorted(counts)} rows: steps = {steps} needs as many in each")
    return chunk, counts.pop()


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [leaf for inner in tree for leaf in _leaves(inner)]
    return [tree]


def _mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(inner, function) for key, inner in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_mapped(inner, function) for inner in tree)
    return function(tree)
