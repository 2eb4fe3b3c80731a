"""Retry loop of a request and of an attempt to connect, shared by the blocking and the asyncio client.

The loop is a generator of steps, as httpx's auth flows: it decides, and `run` or `run_async` performs each step and sends
its outcome back, which is None or the error. The rule of how often and how far apart is the policy's.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Protocol

from shmserve.errors import ServiceStopping, ServiceUnavailable
from shmserve.protocol import Flag

from .client_guard import ClientGuard, ParkingLot
from .connection_events import ConnectionEvents
from .connector import Connector
from .request_options import RequestOptions
from .request_table import RequestTable
from .retry_policy import RetryPolicy


class RetryStep(enum.Enum):
    """The next action of the driver of a loop."""

    CONNECT = enum.auto()  # one attempt; the outcome is a ServiceUnavailable that may pass, or None
    PAUSE = enum.auto()  # wait for the policy's delay
    SEND = enum.auto()  # one attempt; the outcome is a ServiceRestarted or ServiceStopping, or None


RetrySteps = Generator[RetryStep, "ServiceUnavailable | None", None]


class RetryJudge(Protocol):
    """The `Retrier`, as the loops see it."""

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


class Retrier:
    """Decides about another attempt of one client, and performs the steps of a retry loop, but for sending."""

    def __init__(
        self,
        policy: RetryPolicy,
        guard: ClientGuard,
        connector: Connector,
        table: RequestTable,
        events: ConnectionEvents,
        parking_lot: ParkingLot,
    ) -> None:
        #: The policy of calls that bring none.
        self.policy = policy
        self._guard = guard
        self._connector = connector
        self._table = table
        self._events = events
        self._parking_lot = parking_lot

    def connect(self, deadline_ns: int, retry: RetryPolicy | None = None) -> None:
        """Attach, unless that is done and the daemon still there; raises ServiceUnavailable after the retries."""
        policy = retry or self.policy
        run(connect_steps(self, deadline_ns, policy), lambda step: self.perform(step, deadline_ns, policy))

    def perform(self, step: RetryStep, deadline_ns: int, retry: RetryPolicy) -> ServiceUnavailable | None:
        if step is RetryStep.CONNECT:
            return self.try_connect(deadline_ns)
        until_ns = time.monotonic_ns() + int(retry.delay_s * 1e9)
        while time.monotonic_ns() < until_ns:
            self._guard.check_usable()  # closing the client ends the pause
            self._parking_lot.park(until_ns)
        return None

    def try_connect(self, deadline_ns: int) -> ServiceUnavailable | None:
        """Make one attempt to attach; return the error of a service that is unreachable."""
        try:
            self._connector.attach(deadline_ns, self._events)
        except ServiceUnavailable as error:
            return error
        return None

    def may_retry(self, error: ServiceUnavailable, attempts: int, deadline_ns: int, retry: RetryPolicy) -> bool:
        """Return whether an unreachable service is tried again, after the policy's delay."""
        self._guard.check_usable()
        return retry.allows(error, attempts, deadline_ns)

    def may_resend(self, attempts: int, options: RequestOptions, retry: RetryPolicy) -> bool:
        """Return whether a request in flight when the daemon went away is sent to its successor.

        It may already have run, so only if that is harmless: a stateless policy, or `repeatable`.
        """
        return attempts <= retry.max_retries and (
            bool(options.flags & Flag.REPEATABLE) or self._table.is_stateful() is False
        )

    def is_stateful(self) -> bool | None:
        """Return whether the model keeps state; None if unknown."""
        return self._table.is_stateful()
