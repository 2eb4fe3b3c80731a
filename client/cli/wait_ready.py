"""Wait for a service, and for its daemon while that is unavailable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from ..retry_policy import RetryPolicy
from .connection import AdminConnection

_RETRY = RetryPolicy(math.inf, 0.05)
#: Between two reports of the state to an operator who waits.
_REPORT_S = 1.0


def wait_until_ready(
    connection: Callable[[], AdminConnection],
    timeout_s: float,
    report: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Return the state and error that the service settled on, or had at the deadline; `report` gets each one before.

    Raises ServiceUnavailable if no daemon came in time.
    """
    deadline_ns = time.monotonic_ns() + round(timeout_s * 1e9)

    def attempt() -> dict[str, Any]:
        with connection() as admin:
            while True:
                remaining_s = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
                step_s = min(remaining_s, _REPORT_S)
                found = admin.call("WaitReady", {"timeout_s": step_s}, timeout_s=step_s + 5.0)
                if found["settled"] or remaining_s <= step_s:
                    return found
                report(found)

    return _RETRY.run(attempt, deadline_ns)


def answers(found: dict[str, Any]) -> bool:
    """Return whether the service answers requests: during an update the old model does, unless it was stopped."""
    return found["state"] == "ready" or (found["state"] == "updating" and bool(found["settled"]))


def state_words(found: dict[str, Any]) -> str:
    """Return the state of a service that does not answer yet, in words.

    >>> state_words({"state": "loading"})
    'loading'
    >>> ingest = {"step": "receive", "source": "models/big", "bytes": 400_000_000, "of": 1_500_000_000}
    >>> state_words({"state": "starting", "ingest": ingest})
    'starting: copied 0.4 of 1.5 GB'
    """
    ingest = found.get("ingest")
    state: str = found["state"]
    if not ingest:
        return state
    verb = "compared" if ingest["step"] == "compare" else "copied"
    return f"{state}: {verb} {amount(ingest['bytes'], ingest['of'])}"


def amount(done: int, of: int | None) -> str:
    """Return the bytes received so far, and the total if known.

    >>> amount(400_000_000, 1_500_000_000), amount(7, 12_000_000), amount(3_000_000, None)
    ('0.4 of 1.5 GB', '0 of 12 MB', '3 MB')
    """
    scale, unit, digits = (1e9, "GB", 1) if (of or done) >= 1e9 else (1e6, "MB", 0)
    share = f" of {of / scale:.{digits}f}" if of else ""
    return f"{done / scale:.{digits}f}{share} {unit}"
