"""Watches the first requests of a new model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..config.config import Config
from ..supervisor import Deployment, EngineProcess

#: How often a model on probation is looked at.
_LOOK_S = 0.02
#: Failures that a model on probation may have before their share counts.
_LEAST = 5


class Probation:
    """A model on probation, and what to go back to. `begin` it when it serves; its engine's death is the owner's to see."""

    def __init__(self, engine: EngineProcess, before: Deployment, first: dict[str, int], config: Config) -> None:
        """`first`: the engine's counters when it began to serve; one from standby has served before."""
        self.engine = engine
        self.before = before
        self._first = first
        self._config = config
        self._watch: asyncio.Task[None] | None = None
        #: It has passed.
        self.over = False

    def begin(self, on_failed: Callable[[str], Awaitable[None]]) -> None:
        """Watch until enough requests are answered, or too many of them failed: then `on_failed` hears how many."""
        self._watch = asyncio.create_task(self._run(on_failed))

    def end(self) -> None:
        """Watch no longer, and break off what `on_failed` does."""
        if self._watch is not None:
            self._watch.cancel()

    async def _run(self, on_failed: Callable[[str], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            if self.engine.stats is None:
                return  # it died
            counters = self.engine.stats.counters()
            failed = counters["failed"] - self._first["failed"]
            total = failed + counters["served"] - self._first["served"]
            if failed >= _LEAST and failed > total * self._config.probation_failures:
                await on_failed(f"{failed} of its first {total} requests failed")
                return
            if total >= self._config.probation_requests:
                self.over = True
                return
