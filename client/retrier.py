"""Retrier of one client: connects, and decides about another attempt, by the rules of retry_policy.py."""

from __future__ import annotations

import time

from shmserve.errors import ServiceUnavailable
from shmserve.protocol import Flag

from .client_guard import ClientGuard
from .connection_events import ConnectionEvents
from .connector import Connector
from .parking_lot import ParkingLot
from .request_options import RequestOptions
from .request_table import RequestTable
from .retry_loop import RetryStep, connect_steps, run
from .retry_policy import RetryPolicy


class Retrier:
    """Performs the steps of a retry loop, but for sending."""

    def __init__(
        self,
        policy: RetryPolicy,
        guard: ClientGuard,
        connector: Connector,
        table: RequestTable,
        events: ConnectionEvents,
        parking_lot: ParkingLot,
    ) -> None:
        #: Of calls that bring no policy of their own.
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
