"""Retry loop of a request and of an attempt to connect, shared by the blocking and the asyncio client.

The loop is a generator of steps, as httpx's auth flows: it decides, and `run` or `run_async` performs each step and sends
its outcome back, which is None or the error.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Generator
from typing import Protocol

from shmserve.errors import ServiceStopping, ServiceUnavailable

from .request_options import RequestOptions
from .retry_policy import RetryPolicy


class RetryStep(enum.Enum):
    """What the driver of a loop does next."""

    CONNECT = enum.auto()  # one attempt; the outcome is a ServiceUnavailable that may pass, or None
    PAUSE = enum.auto()  # wait for the policy's delay
    SEND = enum.auto()  # one attempt; the outcome is a ServiceRestarted or ServiceStopping, or None


RetrySteps = Generator[RetryStep, "ServiceUnavailable | None", None]


class RetryJudge(Protocol):
    """The pipeline, as the loops see it."""

    def may_retry(self, error: ServiceUnavailable, attempts: int, deadline_ns: int, retry: RetryPolicy) -> bool:
        """Return whether an unreachable service is tried again."""

    def may_resend(self, attempts: int, options: RequestOptions, retry: RetryPolicy) -> bool:
        """Return whether a request that may have run is sent again."""

    def is_stateful(self) -> bool | None:
        """Return whether the model keeps state; None if unknown."""


def connect_steps(judge: RetryJudge, deadline_ns: int, retry: RetryPolicy) -> RetrySteps:
    """Yield the steps until the client is attached; raise the last error when the retries are used up."""
    attempts = 0
    while (error := (yield RetryStep.CONNECT)) is not None:
        attempts += 1
        if not judge.may_retry(error, attempts, deadline_ns, retry):
            raise error
        yield RetryStep.PAUSE


def resend_steps(
    judge: RetryJudge, failure: ServiceUnavailable, options: RequestOptions, deadline_ns: int, retry: RetryPolicy
) -> RetrySteps:
    """Yield the steps after a first attempt failed, until one has not; raise the failure that is final."""
    attempts = 0
    error: ServiceUnavailable | None = failure
    while error is not None:
        attempts += 1
        if isinstance(error, ServiceStopping):
            if not judge.may_retry(error, attempts, deadline_ns, retry):
                raise error
            yield RetryStep.PAUSE
            yield from connect_steps(judge, deadline_ns, retry)
        else:
            if judge.is_stateful() is None:
                yield from connect_steps(judge, deadline_ns, retry)
            if not judge.may_resend(attempts, options, retry):
                raise error
        error = yield RetryStep.SEND


def run(steps: RetrySteps, perform: Callable[[RetryStep], ServiceUnavailable | None]) -> None:
    """Perform the steps of a loop to its end."""
    outcome: ServiceUnavailable | None = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration:
            return
        outcome = perform(step)


async def run_async(steps: RetrySteps, perform: Callable[[RetryStep], Awaitable[ServiceUnavailable | None]]) -> None:
    """Perform the steps of a loop to its end, awaiting each."""
    outcome: ServiceUnavailable | None = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration:
            return
        outcome = await perform(step)
