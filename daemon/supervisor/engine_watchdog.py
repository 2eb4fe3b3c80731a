"""Watchdog of the serving engine.

The engine's loop writes a heartbeat into its stats. A heartbeat that does not move for `heartbeat_timeout_s` ends the
engine, with SIGABRT first, so that its stack is logged; the supervisor then starts another.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from ..host.logging import ENGINE_STUCK
from ..ipc.stats import SEVERAL, Counter
from .engine_process import EngineProcess
from .supervisor import Supervisor

log = logging.getLogger(__name__)

_INTERVAL_S = 0.25
#: A watchdog that has not checked for this long has ended; systemd then restarts the daemon.
_BLIND_S = 10.0
#: From SIGABRT, at which an engine writes its stack into the log, to SIGKILL.
_LAST_WORDS_S = 1.0


class EngineWatchdog:
    """Checks one word of the stats segment four times a second; `run` until cancelled."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._engine: EngineProcess | None = None
        self._beat = 0
        self._unmoved_s = 0.0
        self._checked_s = time.monotonic()
        self._ended_s: float | None = None

    @property
    def stuck(self) -> bool:
        """Whether the serving engine is stuck and has not ended yet, or the watchdog itself has ended."""
        return self._ended_s is not None or time.monotonic() - self._checked_s > _BLIND_S

    async def run(self) -> None:
        while True:
            self.check()
            await asyncio.sleep(_INTERVAL_S)

    def check(self) -> None:
        """End the serving engine if its heartbeat has not moved for too long."""
        engine = self._supervisor.engines.serving
        now_s = time.monotonic()
        since_s, self._checked_s = now_s - self._checked_s, now_s
        beat = 0 if engine is None or engine.stats is None else engine.stats.words[Counter.HEARTBEAT_NS]
        if engine is not self._engine or beat != self._beat or engine is None:
            self._engine, self._beat, self._unmoved_s, self._ended_s = engine, beat, 0.0, None
            return
        if self._ended_s is not None:
            if now_s - self._ended_s >= _LAST_WORDS_S:
                engine.kill()
            return
        # Bounded, as a supervisor that was itself stopped (a debugger, a frozen cgroup) made no checks.
        self._unmoved_s += min(since_s, 2 * _INTERVAL_S)
        heartbeat_timeout_s = self._supervisor.config.heartbeat_timeout_s
        if heartbeat_timeout_s and self._unmoved_s >= heartbeat_timeout_s:
            assert engine.stats is not None
            channel = engine.stats.words[Counter.CHANNEL]
            log.error(
                "engine %d has not moved for heartbeat_timeout_s = %g s, %s: ending it; its stack follows",
                engine.pid,
                heartbeat_timeout_s,
                _in_hand(channel),
                extra={"message_id": ENGINE_STUCK},
            )
            engine.kill(signal.SIGABRT)
            self._ended_s = now_s


def _in_hand(channel: int) -> str:
    if channel == SEVERAL:
        return "requests of several clients in hand"
    return f"a request of client {channel - 1} in hand" if channel else "no request in hand"
