"""Canary phase of a new model: the settings call it probation.

The new model takes all requests at once, because one engine serves. The first `probation_requests` of them decide: too
many failures, or the death of the engine, bring back the model before. Standby makes that an instant rollback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..config.config import Config
from ..supervisor import Deployment, EngineProcess

#: Interval of the checks.
_INTERVAL_S = 0.02
#: From this many failures on their share counts.
_MIN_FAILURES = 5


class Probation:
    """A model on probation and the deployment before it. `begin` once it serves; the owner handles its engine's death."""

    def __init__(self, engine: EngineProcess, before: Deployment, first: dict[str, int], config: Config) -> None:
        """`first`: the engine's counters when it began to serve; an engine from standby has served before."""
        self.engine = engine
        self.before = before
        self._first = first
        self._config = config
        self._watch: asyncio.Task[None] | None = None
        #: Whether the model has passed.
        self.over = False

    def begin(self, on_failed: Callable[[str], Awaitable[None]]) -> None:
        """Watch until enough requests are answered, or call `on_failed` with the reason if too many of them fail."""
        self._watch = asyncio.create_task(self._run(on_failed))

    def end(self) -> None:
        """Stop the watch, and cancel `on_failed` if it is running."""
        if self._watch is not None:
            self._watch.cancel()

    async def _run(self, on_failed: Callable[[str], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            if self.engine.stats is None:
                return  # it died
            counters = self.engine.stats.counters()
            failed = counters["failed"] - self._first["failed"]
            total = failed + counters["served"] - self._first["served"]
            if failed >= _MIN_FAILURES and failed > total * self._config.probation_failures:
                await on_failed(f"{failed} of its first {total} requests failed")
                return
            if total >= self._config.probation_requests:
                self.over = True
                return
