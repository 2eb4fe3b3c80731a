"""Loaded standby (standby = "loaded"): a second engine of the served version, with the model loaded and warm.

If the serving engine dies, it takes over without loading anything. It costs the memory of a second model: it is started where
the machine has room for it beside the serving one, and on a GPU where both fit.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ..config.config import Config
from ..host.memory import private_bytes
from .deployment import Deployment, EngineStartError
from .engine_pool import EnginePool
from .engine_process import EngineProcess
from .spare_engine import KEEP_BYTES, START_STALLED, SpareState, memory_shortage

log = logging.getLogger(__name__)

_CALM_S = 1.0
_CHECK_S = 1.0
#: Until a failed attempt is repeated.
_PAUSE_S = 60.0


class LoadedStandby:
    """Keeps the pool's second engine; `run` until cancelled."""

    def __init__(self, config: Config, engines: EnginePool, calm_s: Callable[[], float]) -> None:
        """`calm_s` is as in `SpareEngine`."""
        self._config = config
        self._engines = engines
        self._calm_s = calm_s
        #: Why there is none although there should be one, in a sentence.
        self.reason: str | None = None
        self._failed: Deployment | None = None
        self._not_before_s = 0.0

    @property
    def state(self) -> str:
        """Return off, waiting, ready or failed."""
        if self._config.standby != "loaded":
            return "off"
        if self._engines.twin is not None:
            return "ready"
        return "waiting" if self.reason is None else "failed"

    async def run(self) -> None:
        """Keep one ready, as far as the memory allows."""
        while True:
            await self._look()
            await asyncio.sleep(_CHECK_S)

    async def _look(self) -> None:
        engines, serving = self._engines, self._engines.serving
        wanted = self._config.standby == "loaded"
        if engines.twin is not None:
            if not wanted or (serving is not None and engines.twin.deployment != serving.deployment):
                engines.drop_twin()
            return
        if not wanted or serving is None or self._calm_s() < _CALM_S:
            return
        if serving.deployment == self._failed and time.monotonic() < self._not_before_s:
            return
        # The spare engine comes first: it is ready sooner, and this one is started without it.
        if self._config.spare_engine and engines.spare.status.state in (SpareState.WAITING, SpareState.STARTING):
            return
        await self._start(serving)

    async def _start(self, serving: EngineProcess) -> None:
        engines, deployment = self._engines, serving.deployment
        needed = (await asyncio.to_thread(private_bytes, serving.pid) or 0) + KEEP_BYTES
        if (shortage := memory_shortage(needed, START_STALLED)) is not None:
            self._fail(deployment, shortage)
            return
        try:
            engine = await engines.start_beside(deployment)
        except (EngineStartError, OSError) as failure:
            self._fail(deployment, str(failure))
            return
        self.reason = self._failed = None
        if engines.serving is None or engines.serving.deployment == deployment:
            engines.keep_twin(engine)
            log.info("a second engine of version %s is ready to take over", deployment.version)
        else:  # another model serves by now
            await engines.discard(engine)

    def _fail(self, deployment: Deployment, reason: str) -> None:
        if reason != self.reason:
            log.warning('no second engine is kept, although standby = "loaded": %s', reason)
        self.reason, self._failed = reason, deployment
        self._not_before_s = time.monotonic() + _PAUSE_S
