"""Waits for a service, and for its daemon if that is not there yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shmserve.errors import ServiceUnavailable

from .connection import AdminConnection

_RETRY_S = 0.05


def wait_until_ready(connection: Callable[[], AdminConnection], timeout_s: float) -> dict[str, Any]:
    """The state and error that the service settled on; raises ServiceUnavailable if no daemon came in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with connection() as admin:
                remaining_s = max(0.0, deadline - time.monotonic())
                return admin.call("WaitReady", {"timeout_s": remaining_s}, timeout_s=remaining_s + 5.0)
        except ServiceUnavailable:
            if time.monotonic() + _RETRY_S >= deadline:
                raise
            time.sleep(_RETRY_S)
