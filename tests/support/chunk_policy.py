"""A clock and a policy under the control of a test of ActionChunks."""

from __future__ import annotations

from typing import Any

import numpy as np

from shmserve.client import NoFreshAction
from shmserve.client.action_chunks import ActionChunks, ActionStep
from shmserve.client.pending import Reply, RequestTiming
from shmserve.errors import (
    RequestTimeout,
    ShmServeError,
)

MS = 1_000_000


class Clock:
    """Nanoseconds that pass when a test says so."""

    def __init__(self) -> None:
        self.ns = 1_000_000 * MS

    def __call__(self) -> int:
        return self.ns


class Request:
    """A request to the policy below."""

    deadline_ns = 1 << 62

    def __init__(self, clock: Clock, ready_ns: int, answer: Any, version: str) -> None:
        self.clock = clock
        self.ready_ns = ready_ns
        self.answer = answer
        self.version = version
        self.cancelled = False

    def done(self) -> bool:
        return self.clock.ns >= self.ready_ns

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            wait_ns = self.ready_ns - self.clock.ns if timeout is None else int(timeout * 1e9)
            self.clock.ns = min(self.ready_ns, self.clock.ns + wait_ns)
            if not self.done():
                raise RequestTimeout("not yet")
        if isinstance(self.answer, ShmServeError):
            raise self.answer
        return self.answer

    def cancel(self) -> bool:
        self.cancelled = True
        return not self.done()

    @property
    def reply(self) -> Reply:
        return Reply(self.answer, RequestTiming(0.0, 0.0, 0.0, 0.0, 0.0), self.version, 1, False, False)


class Policy:
    """Chunks whose rows are (request, row), each after a latency of its own; one request at a time or it says so."""

    def __init__(self, clock: Clock, *, rows: int = 64, latencies_ms: list[float] | None = None) -> None:
        self.clock = clock
        self.rows = rows
        self.latencies_ms = latencies_ms or [0.0]
        self.version = "a"
        self.failure: ShmServeError | None = None
        self.observations: list[Any] = []
        self.requests: list[Request] = []
        self.resets = 0
        self.connects: list[ShmServeError | None] = []

    def connect(self, *, timeout: float | None = None) -> None:
        error = self.connects.pop(0) if self.connects else None
        if error is not None:
            raise error

    def submit(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age: float | None = None,
    ) -> Request:
        assert all(request.done() for request in self.requests), "one request at a time"
        number = len(self.requests)
        latency_ns = round(self.latencies_ms[number % len(self.latencies_ms)] * MS)
        rows = np.stack([np.full(self.rows, number), np.arange(self.rows)], axis=1).astype(np.float32)
        answer: Any = {"actions": rows} if self.failure is None else self.failure
        self.observations.append(observation)
        self.requests.append(Request(self.clock, self.clock.ns + latency_ns, answer, self.version))
        return self.requests[-1]

    def reset(self, *, timeout: float | None = None) -> None:
        self.resets += 1


def make(policy: Policy, **settings: Any) -> ActionChunks:
    """Steps of 20 ms that wait for nothing, unless the test says otherwise; connected."""
    defaults: dict[str, Any] = {"steps": 8, "period": 0.02, "max_wait": 0.0, "fallback": "raise", "clock": policy.clock}
    chunks = ActionChunks(policy, **{**defaults, **settings})
    chunks._connected = True  # looking for the service takes a thread, and a time that no clock of a test knows
    return chunks


def pace(chunks: ActionChunks, policy: Policy, count: int, period_ms: float = 20.0) -> list[ActionStep | NoFreshAction]:
    """What `count` steps gave, one every period."""
    found: list[ActionStep | NoFreshAction] = []
    began_ns = policy.clock.ns
    for number in range(count):
        policy.clock.ns = max(policy.clock.ns, began_ns + round(number * period_ms * MS))
        try:
            found.append(chunks.step({"step": number}))
        except NoFreshAction as error:
            found.append(error)
    return found


def rows_of(steps: list[ActionStep | NoFreshAction]) -> list[tuple[int, int] | str]:
    """(request, row) of each step, or the source of the fallback."""
    return [
        "none"
        if isinstance(step, NoFreshAction)
        else (int(step.action[0]), int(step.action[1]))
        if step.source == "chunk"
        else step.source
        for step in steps
    ]
