"""Waits for a service, and for its daemon if that is not there yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shmserve.errors import ServiceUnavailable

from .connection import AdminConnection

_RETRY_S = 0.05
#: So often somebody who waits is told what the service does.
_LOOK_S = 1.0


def wait_until_ready(
    connection: Callable[[], AdminConnection],
    timeout_s: float,
    tell: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """The state and error that the service settled on, or had when the time was over; `tell` is given each before it.

    Raises ServiceUnavailable if no daemon came in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with connection() as admin:
                while True:
                    remaining_s = max(0.0, deadline - time.monotonic())
                    step_s = min(remaining_s, _LOOK_S)
                    found = admin.call("WaitReady", {"timeout_s": step_s}, timeout_s=step_s + 5.0)
                    if found["settled"] or remaining_s <= step_s:
                        return found
                    tell(found)
        except ServiceUnavailable:
            if time.monotonic() + _RETRY_S >= deadline:
                raise
            time.sleep(_RETRY_S)


def answers(found: dict[str, Any]) -> bool:
    """Whether the service answers requests: while a new model is on its way, the old one does unless it was stopped."""
    return found["state"] == "ready" or (found["state"] == "updating" and bool(found["settled"]))


def state_words(found: dict[str, Any]) -> str:
    """What a service does that does not answer yet.

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
    """Bytes that have come, of how many.

    >>> amount(400_000_000, 1_500_000_000), amount(7, 12_000_000), amount(3_000_000, None)
    ('0.4 of 1.5 GB', '0 of 12 MB', '3 MB')
    """
    scale, unit, digits = (1e9, "GB", 1) if (of or done) >= 1e9 else (1e6, "MB", 0)
    share = f" of {of / scale:.{digits}f}" if of else ""
    return f"{done / scale:.{digits}f}{share} {unit}"
