"""The one engine that is kept warm behind the serving one, for an instant rollback, for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .deployment import Deployment
from .engine_process import EngineProcess


class Standby:
    """At most one; whoever keeps another drops the one before."""

    def __init__(self, on_expired: Callable[[], object]) -> None:
        self.engine: EngineProcess | None = None
        self._on_expired = on_expired
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, engine: EngineProcess, standby_s: float) -> None:
        """Keep it for `standby_s`, then `on_expired` is called."""
        self.forget()
        self.engine = engine
        self._timer = asyncio.get_running_loop().call_later(standby_s, self._on_expired)

    def claim(self, deployment: Deployment) -> EngineProcess | None:
        """The engine, if it runs this model; it is the caller's to let serve or to keep again."""
        engine = self.engine
        if engine is None or not engine.alive or engine.deployment != deployment:
            return None
        return self.forget()

    def forget(self) -> EngineProcess | None:
        """Keep none any more; returns the one that was."""
        engine, self.engine = self.engine, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return engine
