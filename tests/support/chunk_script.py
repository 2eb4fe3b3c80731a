"""Scripts of replies, delays and failures that ActionChunks runs, in Python here and in C++ in cpp_programs/scripted_chunks.cpp.

    new NOW_NS STEPS PREFETCH OVERRUN PERIOD_NS MAX_WAIT_NS FALLBACK MAX_AGE_NS CONNECTED AGGREGATE
                                                  -1: prefetch is learned, no max_age; period 0: counts; aggregate: or `own`
    next LATENCY_NS REPLY VERSION ROWS SUBMIT     of requests from now on: the status of their reply, and of sending them
    connect LATENCY_NS STATUS UNREACHABLE         of attempts to connect: how they end, and the status until then
    step NOW_NS CAPTURE_NS                        0: captured now
    reset
    stats

A line is printed for each `new`, `step`, `reset` and `stats`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shmserve.client import action_chunks
from shmserve.client.action_chunks import ActionChunks
from shmserve.client.chunk_continuation import Continuation
from shmserve.errors import (
    ClientEvicted,
    ContractMismatch,
    EngineLost,
    InferenceFailed,
    InvalidArgument,
    InvalidChunk,
    NoFreshAction,
    ProtocolMismatch,
    RequestRejected,
    RequestTimeout,
    ServiceRestarted,
    ServiceStopping,
    ServiceUnavailable,
    ShmServeError,
    SlotsExhausted,
)
from tests.support.chunk_policy import Clock, Policy, Request

#: The error of Python for each status of C.
ERRORS: dict[int, type[ShmServeError]] = {
    6: RequestRejected,
    7: InferenceFailed,
    8: EngineLost,
    9: ServiceStopping,
    -1: RequestTimeout,
    -2: SlotsExhausted,
    -3: ServiceRestarted,
    -4: ServiceUnavailable,
    -6: ProtocolMismatch,
    -7: ContractMismatch,
    -11: ClientEvicted,
}
NO_FRESH_ACTION = -100
_STATUSES = {error: status for status, error in ERRORS.items()} | {InvalidChunk: -7, NoFreshAction: NO_FRESH_ACTION}


def own(previous: Any, following: Any) -> Any:
    """As `own` in scripted_chunks.cpp."""
    fails = int(following[0]) % 7 == 6
    return np.full_like(following, np.nan) if fails else (previous * 3 + following) / 4


def status_of(error: ShmServeError | None) -> int:
    return 0 if error is None else _STATUSES[type(error)]


def _error(status: int) -> ShmServeError | None:
    return ERRORS[status]("scripted") if status else None


class _Request(Request):
    """Waits to the nanosecond."""

    def result(self, timeout: float | None = None) -> Any:
        if timeout and not self.done():
            self.clock.ns = min(self.ready_ns, self.clock.ns + round(timeout * 1e9))
        return super().result(0)


class _Policy(Policy):
    """As the script's `next` and `connect` lines say."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.next = (0, 0, 1, 0, 0)
        self.connection = (0, 0, 0)
        self.connect_count = self.expects = 0
        self.is_away = False
        self.left_over = self.delays = 0

    def _submit_continued(self, observation: Any, **_: Any) -> Request:
        request = self.submit(observation)
        rows = len(observation["prev_chunk_left_over"])
        self.left_over += rows
        self.delays += observation["inference_delay"] * rows
        return request

    def submit(self, observation: Any, **_: Any) -> Request:
        latency_ns, reply, version, count, submit = self.next
        error = _error(submit)
        if error is not None:
            raise error
        number = len(self.requests)
        rows = np.stack([np.full(count, number), np.arange(count)], axis=1).astype(np.float32)
        answer: Any = _error(reply) or {"actions": rows}
        self.requests.append(_Request(self.clock, self.clock.ns + latency_ns, answer, str(version)))
        return self.requests[-1]

    def reset(self, *, timeout: float | None = None) -> None:
        if self.is_away:
            raise ServiceUnavailable("scripted")
        super().reset()

    def expect(self, within: float) -> None:
        self.expects += 1


class _Connect:
    """In place of BackgroundConnect, whose thread knows no scripted clock."""

    model = None

    def __init__(self, client: _Policy, delay_s: float) -> None:
        latency_ns, status, unreachable = client.connection
        client.connect_count += 1
        self._clock = client.clock
        self._ended_ns = client.clock.ns + round(delay_s * 1e9) + latency_ns
        self.error, self.unreachable = _error(status), _error(unreachable)

    @property
    def ended(self) -> bool:
        return self._clock.ns >= self._ended_ns

    def wait(self, until_ns: int) -> bool:
        self._clock.ns = max(self._clock.ns, min(until_ns, self._ended_ns))
        return self.ended

    def stop(self) -> None:
        pass


class _World:
    def __init__(self, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        now_ns, steps, prefetch, overrun, period_ns, max_wait_ns = map(int, words[:6])
        fallback, max_age_ns, connected, aggregate = words[6], int(words[7]), words[8] == "1", words[9]
        self.clock = Clock()
        self.clock.ns = now_ns
        time = SimpleNamespace(monotonic_ns=self.clock, sleep=lambda _: None)
        monkeypatch.setattr(action_chunks, "time", time)
        monkeypatch.setattr(action_chunks, "BackgroundConnect", _Connect)
        self.policy = _Policy(self.clock)
        self.chunks = ActionChunks(
            self.policy,
            steps=steps,
            period=period_ns / 1e9 if period_ns else None,
            max_wait=max_wait_ns / 1e9,
            fallback=fallback,  # type: ignore[arg-type]
            max_age=None if max_age_ns < 0 else max_age_ns / 1e9,
            prefetch=None if prefetch < 0 else prefetch,
            overrun_steps=overrun,
            aggregate=own if aggregate == "own" else aggregate,  # type: ignore[arg-type]
            clock=self.clock,
        )
        self.chunks._connected = connected
        # C++ knows from the structure of its observation what the policy takes.
        monkeypatch.setattr(Continuation, "applies_to", lambda self, chunk: True)
        monkeypatch.setattr(Continuation, "knows", lambda self, version: True)

    def step(self, now_ns: int, capture_ns: int) -> str:
        self.clock.ns = max(self.clock.ns, now_ns)
        try:
            step = self.chunks.step({}, capture_time=capture_ns / 1e9 if capture_ns else None)
        except ShmServeError as error:
            return f"status {status_of(error)}"
        request, row = step.action
        index = -1 if step.index is None else step.index
        age_ns = round(step.age * 1e9)
        facts = (step.chunk, index, age_ns, status_of(step.error))
        return f"{step.source} {step.fresh:d} {request:g} {row:g} {step.version or 0} {' '.join(map(str, facts))}"

    def reset(self) -> str:
        # In C++ the client belongs to the thread that connects it.
        self.policy.is_away = self.chunks._connecting is not None
        try:
            self.chunks.reset()
        except ServiceUnavailable as error:
            return f"reset {status_of(error)}"
        return "reset 0"

    def stats(self) -> str:
        stats, policy = self.chunks.stats(), self.policy
        counts = [getattr(stats, name) for name in stats.__dataclass_fields__]
        cancels = sum(request.cancelled for request in policy.requests)
        counts += [len(policy.requests), policy.expects, cancels, policy.resets, policy.connect_count]
        counts += [policy.left_over, policy.delays, self.clock.ns]
        counts.append(self.chunks.lead)
        return " ".join(map(str, counts))


def run_in_python(script: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the line that each command gives."""
    printed: list[str] = []
    world: _World | None = None
    for line in script:
        command, *words = line.split()
        if command == "new":
            try:
                world = _World(words, monkeypatch)
            except InvalidArgument:
                world = None
            printed.append("refused" if world is None else "new")
        elif world is None:
            continue
        elif command == "next":
            latency, reply, version, rows, submit = map(int, words)
            world.policy.next = (latency, reply, version, rows, submit)
        elif command == "connect":
            latency, status, unreachable = map(int, words)
            world.policy.connection = (latency, status, unreachable)
        elif command == "reset":
            printed.append(world.reset())
        elif command == "step":
            printed.append(world.step(*map(int, words)))
        else:
            printed.append(world.stats())
    return printed
