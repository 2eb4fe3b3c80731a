"""Warm standby: an engine that has loaded its model and does not serve.

There may be two: the previous engine, kept for a limited time for an instant rollback, and, with standby = "loaded", a second
engine of the served version, which takes over at once if the serving one dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .deployment import Deployment
from .engine_process import EngineProcess


class Standby:
    """Holds at most one engine; keeping another forgets the one before."""

    def __init__(self, on_expired: Callable[[], object]) -> None:
        self.engine: EngineProcess | None = None
        self._on_expired = on_expired
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, engine: EngineProcess, standby_s: float | None) -> None:
        """Keep `engine` for `standby_s` (None: until it is dropped), then call `on_expired`."""
        self.forget()
        self.engine = engine
        if standby_s is not None:
            self._timer = asyncio.get_running_loop().call_later(standby_s, self._on_expired)

    def claim(self, deployment: Deployment) -> EngineProcess | None:
        """Return the engine if it runs this deployment; the caller lets it serve or keeps it again."""
        engine = self.engine
        if engine is None or not engine.alive or engine.deployment != deployment:
            return None
        return self.forget()

    def forget(self) -> EngineProcess | None:
        """Keep none; return the engine that was kept, or None."""
        engine, self.engine = self.engine, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return engine
