"""Wait for a service, and for its daemon while that is unavailable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from shmserve.errors import ServiceUnavailable

from ..retry_policy import RetryPolicy
from .connection import AdminConnection

_RETRY = RetryPolicy(math.inf, 0.05)
#: Between two reports of the state to an operator who waits.
_REPORT_S = 1.0
#: Without a timeout: the wait ends after this time without a daemon, or without progress of the daemon.
STALL_S = 60.0
#: Without a timeout: the wait ends once this many daemons ended before they were ready.
_DAEMONS = 3
#: States in which an engine starts, within load_s.
_STARTING_ENGINE = ("loading", "warming", "updating")


class _Patience:
    """The end of a wait: after `timeout_s`, or if that is None, `stall_s` after the latest progress."""

    def __init__(self, timeout_s: float | None, stall_s: float) -> None:
        self._is_fixed = timeout_s is not None
        self._stall_s = stall_s
        self._seen: object = None
        self._lost = 0
        self.deadline_ns = 0
        self._extend(stall_s if timeout_s is None else timeout_s)

    @property
    def remaining_s(self) -> float:
        return max(0.0, (self.deadline_ns - time.monotonic_ns()) / 1e9)

    def saw(self, found: dict[str, Any]) -> None:
        """Wait longer if the service has made progress since the last call."""
        seen = (found["state"], found["ingest"])
        if not self._is_fixed and (seen != self._seen or _is_bounded(found)):
            self._extend(self._stall_s)
        self._seen = seen

    def allows_another(self, error: ServiceUnavailable) -> bool:
        """Report whether to connect again after this error, and count the daemon if one was connected."""
        if self._seen is not None:
            self._seen = None
            self._lost += 1
        return (self._is_fixed or self._lost < _DAEMONS) and _RETRY.allows(error, 0, self.deadline_ns)

    def _extend(self, seconds: float) -> None:
        self.deadline_ns = time.monotonic_ns() + round(seconds * 1e9)


def _is_bounded(found: dict[str, Any]) -> bool:
    """Report whether the daemon itself bounds the time of what it does: a load, or a received package's way to the disk."""
    ingest = found["ingest"]
    return found["state"] in _STARTING_ENGINE or (
        ingest is not None and ingest["step"] == "receive" and ingest["bytes"] == ingest["of"]
    )


def wait_until_ready(
    connection: Callable[[], AdminConnection],
    timeout_s: float | None,
    report: Callable[[dict[str, Any]], None] = lambda found: None,
    *,
    stall_s: float = STALL_S,
) -> dict[str, Any]:
    """Return the state and error that the service settled on, or had at the deadline; `report` gets each one before.

    Without a timeout, wait as long as the daemon makes progress: bytes of a package received or checked, another state,
    or a step that the daemon itself bounds: an engine that loads, the disk that writes a received package. Raises
    ServiceUnavailable if no daemon came in time.
    """
    patience = _Patience(timeout_s, stall_s)
    while True:
        try:
            with connection() as admin:
                while True:
                    step_s = min(patience.remaining_s, _REPORT_S)
                    found = admin.call("WaitReady", {"timeout_s": step_s}, timeout_s=step_s + 5.0)
                    patience.saw(found)
                    if found["settled"] or not patience.remaining_s:
                        return found
                    report(found)
        except TimeoutError as error:  # systemd listens for a daemon that does not answer yet
            if not patience.remaining_s:
                raise ServiceUnavailable(f"the daemon does not answer: {error}") from error
        except ServiceUnavailable as error:
            if not patience.allows_another(error):
                raise
            time.sleep(_RETRY.delay_s)


def answers(found: dict[str, Any]) -> bool:
    """Return whether the service answers requests: during an update the old model does, unless it was stopped."""
    return found["state"] == "ready" or (found["state"] == "updating" and bool(found["settled"]))


#: The verb for the bytes of each step of a package.
STEP_VERBS = {"receive": "copied", "compare": "compared", "check": "checked"}


def state_words(found: dict[str, Any]) -> str:
    """Return the state of a service that does not answer yet, in words.

    >>> state_words({"state": "loading"})
    'loading'
    >>> ingest = {"step": "receive", "source": "models/big", "bytes": 400_000_000, "of": 1_500_000_000}
    >>> state_words({"state": "starting", "ingest": ingest})
    'starting: copied 0.4 of 1.5 GB'
    >>> state_words({"state": "starting", "ingest": {**ingest, "step": "check"}})
    'starting: checked 0.4 of 1.5 GB'
    """
    ingest = found.get("ingest")
    state: str = found["state"]
    if not ingest:
        return state
    return f"{state}: {STEP_VERBS[ingest['step']]} {amount(ingest['bytes'], ingest['of'])}"


def amount(done: int, of: int | None) -> str:
    """Return the bytes received so far, and the total if known.

    >>> amount(400_000_000, 1_500_000_000), amount(7, 12_000_000), amount(3_000_000, None)
    ('0.4 of 1.5 GB', '0 of 12 MB', '3 MB')
    """
    scale, unit, digits = (1e9, "GB", 1) if (of or done) >= 1e9 else (1e6, "MB", 0)
    share = f" of {of / scale:.{digits}f}" if of else ""
    return f"{done / scale:.{digits}f}{share} {unit}"
