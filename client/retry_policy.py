"""How often a call tries a service again that is not there. A value: it travels with its call, and no other sees it."""

from __future__ import annotations

from typing import Any, NamedTuple

from .arguments import seconds, whole


class RetryPolicy(NamedTuple):
    """At most so many times, and after so long each time."""

    max_retries: int
    delay_s: float

    @classmethod
    def of(cls, max_retries: Any, retry_delay: Any) -> RetryPolicy:
        """As the caller gave them; raises InvalidArgument."""
        return cls(whole("max_retries", max_retries, 0), seconds("retry_delay", retry_delay))
