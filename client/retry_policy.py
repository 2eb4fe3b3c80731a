"""Retry policy: how often, and how far apart, a call tries a service that is unavailable.

An immutable value that travels with its call, so the policy of one call never governs another. Every loop of the
client, of the drop-ins and of shmserve-admin that waits for a service asks it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from shmserve.errors import ClientEvicted, ServiceUnavailable

from .arguments import seconds, whole

T = TypeVar("T")


class RetryPolicy(NamedTuple):
    """At most `max_retries` further attempts, `delay_s` apart; math.inf: until the deadline.

    An eviction is final unless the policy `outlasts_bans`: reconnecting at once only lengthens the ban.
    """

    max_retries: float
    delay_s: float
    outlasts_bans: bool = False

    @classmethod
    def of(cls, max_retries: Any, retry_delay: Any) -> RetryPolicy:
        """Check the caller's arguments; raises InvalidArgument."""
        return cls(whole("max_retries", max_retries, 0), seconds("retry_delay", retry_delay))

    def allows(self, error: ServiceUnavailable, failures: int, deadline_ns: float) -> bool:
        """Return whether another attempt may follow after `failures` of them, the latest with `error`."""
        if isinstance(error, ClientEvicted) and not self.outlasts_bans:
            return False
        if failures > self.max_retries:
            return False
        return time.monotonic_ns() + self.delay_s * 1e9 < deadline_ns

    def run(
        self,
        attempt: Callable[[], T],
        deadline_ns: float = math.inf,
        pause: Callable[[ServiceUnavailable], object] | None = None,
    ) -> T:
        """Call `attempt` until it returns; raises its latest ServiceUnavailable when the policy ends the retries.

        `pause` is called between two attempts instead of a sleep of `delay_s`.
        """
        failures = 0
        while True:
            try:
                return attempt()
            except ServiceUnavailable as error:
                failures += 1
                if not self.allows(error, failures, deadline_ns):
                    raise
                if pause is not None:
                    pause(error)
                else:
                    time.sleep(self.delay_s)
