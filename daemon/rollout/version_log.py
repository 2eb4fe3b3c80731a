"""What is written down of the versions, in the order of what happened, while nobody waits for the disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from shmserve.errors import ShmServeError

from ..store.errors import StoreUnavailable, VersionUnknown
from ..store.store import Store
from ..supervisor.deployment import Served
from ..supervisor.engine_pool import Engines
from ..supervisor.engine_process import EngineProcess
from .version_counts import SERVED, ServedCounts

log = logging.getLogger(__name__)


class VersionNotes:
    """One writer at a time, in a thread; `close` returns once everything is on the disk."""

    def __init__(self, store: Store, engines: Engines) -> None:
        self._store = store
        self.counts = ServedCounts(engines, store)
        self._turn = asyncio.Lock()
        self._writers: set[asyncio.Task[None]] = set()

    async def make_current(self, served: Served, *, allow_downgrade: bool) -> None:
        """From now on a restart serves this one; raises StoreUnavailable."""
        async with self._turn:
            await asyncio.to_thread(self._make_current, served, allow_downgrade=allow_downgrade)

    def note(self, version: str, facts: dict[str, Any], *, then_current: Served | None = None) -> None:
        """Remember facts of a version, and which one is current."""

        def work() -> None:
            try:
                self._store.record(version, **facts)
            except VersionUnknown:
                pass  # removed meanwhile
            except StoreUnavailable as error:
                log.error("%s", error)
            if then_current is not None:
                self._make_current(then_current)

        self.remember(work)

    def note_served(self, engine: EngineProcess) -> None:
        """An engine has ended: how many requests its version has answered."""
        version = engine.served.version
        if count := self.counts.of(version):
            self.note(version, {SERVED: count})

    def remember(self, work: Callable[[], None]) -> None:
        """Run `work`, which blocks while the disk writes, after what was to be remembered before."""

        async def in_turn() -> None:
            async with self._turn:
                try:
                    await asyncio.to_thread(work)
                except ShmServeError as error:
                    log.error("%s", error)

        task = asyncio.create_task(in_turn())
        self._writers.add(task)
        task.add_done_callback(self._writers.discard)

    async def close(self) -> None:
        """Returns once everything that was to be remembered is on the disk."""
        while self._writers:
            await asyncio.wait(self._writers)

    def _make_current(self, served: Served, *, allow_downgrade: bool = False) -> None:
        self._store.make_current(
            served.version, allow_downgrade=allow_downgrade, device=served.device, taken_back=None, refused=None
        )
