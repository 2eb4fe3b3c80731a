"""Readiness notifier for systemd.

It reports READY once the model is warm, WATCHDOG while the engine's heartbeat moves, and asks for more time while the
first model loads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from shmserve.shortened import shortened

from ..host.notify import Notifier
from .engine_watchdog import EngineWatchdog
from .status import ServiceState, ServiceStatus
from .supervisor import Supervisor

_INTERVAL_S = 0.5
#: Characters of what systemd shows as the unit's status.
_STATUS_TEXT = 500
#: While the first model loads: interval and length of each extension.
_EXTEND_EVERY_S = 5.0
_EXTENSION_S = 30.0
#: Time that stopping takes in addition to the drain.
_STOP_MARGIN_S = 10.0


class ReadinessNotifier:
    """Call `run` until cancelled; `stopping` when the daemon begins to stop."""

    def __init__(self, supervisor: Supervisor, notifier: Notifier, watchdog: EngineWatchdog) -> None:
        self._supervisor = supervisor
        self._notifier = notifier
        self._watchdog = watchdog
        self._ready = False
        self._stopping = False
        self._status = ""
        self._extended_s = -_EXTEND_EVERY_S
        self._fed_s = time.monotonic()

    async def run(self) -> None:
        while True:
            self.report()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._supervisor.wait_change(), self._interval_s())

    def report(self) -> None:
        """Report the changes since the last report, and the watchdog's keep-alive if it is due."""
        current, now_s = self._supervisor.snapshot(), time.monotonic()
        if not self._ready and current.state in (ServiceState.READY, ServiceState.UPDATING):
            self._ready = self._notifier.sd_notify(READY=1)
        if self._supervisor.stopping:
            self.stopping()
        status = _status_text(current)
        if status != self._status and not self._stopping and self._notifier.sd_notify(STATUS=status):
            self._status = status
        if not self._ready and not self._stopping and now_s - self._extended_s >= _EXTEND_EVERY_S:
            # load_s bounds the load; systemd only has to wait that long.
            self._extended_s = now_s
            self._notifier.sd_notify(EXTEND_TIMEOUT_USEC=int(_EXTENSION_S * 1e6))
        watchdog_s = self._notifier.watchdog_s
        # Not by a separate timer: the report comes from the supervisor's loop, and only while the engine moves.
        if watchdog_s is not None and now_s - self._fed_s >= watchdog_s / 4 and not self._watchdog.stuck:
            self._fed_s = now_s
            self._notifier.sd_notify(WATCHDOG=1)

    def stopping(self) -> None:
        """Report that the daemon stops, within the time of its drain. May be called twice."""
        if self._stopping:
            return
        limit_us = int((self._supervisor.config.drain_s + _STOP_MARGIN_S) * 1e6)
        self._stopping = self._notifier.sd_notify(
            STOPPING=1, EXTEND_TIMEOUT_USEC=limit_us, STATUS="answering what clients have sent"
        )

    def failed(self, reason: str) -> None:
        """Report why the daemon ends."""
        self._notifier.sd_notify(STATUS=shortened(f"failed: {reason}", _STATUS_TEXT))

    def _interval_s(self) -> float:
        watchdog_s = self._notifier.watchdog_s
        return _INTERVAL_S if watchdog_s is None else min(_INTERVAL_S, watchdog_s / 4)


def _status_text(status: ServiceStatus) -> str:
    text: str = status.state.value
    if status.model is not None:
        text += f": {status.model['name']} version {status.model['version']} on {status.model['device']}"
    if status.error:
        text += f": {status.error}"
    return shortened(text, _STATUS_TEXT)
