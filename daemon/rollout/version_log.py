"""Version log: writes metadata of versions to the store, in order, without blocking the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

from shmserve.errors import ShmServeError

from ..store.errors import StoreUnavailable, VersionUnknown
from ..store.store import Store
from ..supervisor import Deployment, EnginePool, EngineProcess

log = logging.getLogger(__name__)

#: Key of the count in a version's metadata.
SERVED = "served"


class RequestCounts:
    """Requests answered by each version: the counts of earlier runs plus those of this run's engines."""

    def __init__(self, engines: EnginePool, store: Store) -> None:
        self._engines = engines
        self._store = store

    @cached_property
    def _earlier(self) -> dict[str, int]:
        """Counts in the store before this run recorded any."""
        counts = ((stored.version, stored.facts.get(SERVED)) for stored in self._store.versions())
        return {version: count for version, count in counts if isinstance(count, int)}

    def of(self, version: str) -> int:
        """Return the number of requests that this version has answered."""
        return self._earlier.get(version, 0) + self._engines.counters.served_by_version(version)


class VersionLog:
    """A queue of writes, each in a thread; `close` returns once all of them are on the disk."""

    def __init__(self, store: Store, engines: EnginePool) -> None:
        self._store = store
        self.request_counts = RequestCounts(engines, store)
        self._turn = asyncio.Lock()
        self._writers: set[asyncio.Task[None]] = set()

    async def make_current(self, deployment: Deployment, *, allow_downgrade: bool) -> None:
        """Record that a restart serves this deployment; raises StoreUnavailable."""
        async with self._turn:
            await asyncio.to_thread(self._make_current, deployment, allow_downgrade=allow_downgrade)

    def set_metadata(self, version: str, metadata: dict[str, Any], *, then_current: Deployment | None = None) -> None:
        """Enqueue metadata of a version, and which version is current."""

        def work() -> None:
            try:
                self._store.record(version, **metadata)
            except VersionUnknown:
                pass  # removed meanwhile
            except StoreUnavailable as error:
                log.error("%s", error)
            if then_current is not None:
                self._make_current(then_current)

        self.enqueue(work)

    def record_requests(self, engine: EngineProcess) -> None:
        """Record the number of requests that the version of an ended engine has answered."""
        version = engine.deployment.version
        if count := self.request_counts.of(version):
            self.set_metadata(version, {SERVED: count})

    def enqueue(self, work: Callable[[], None]) -> None:
        """Run `work`, which may block on the disk, in a thread after the writes enqueued before."""

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
        """Return once every enqueued write is on the disk."""
        while self._writers:
            await asyncio.wait(self._writers)

    def _make_current(self, deployment: Deployment, *, allow_downgrade: bool = False) -> None:
        self._store.make_current(
            deployment.version,
            allow_downgrade=allow_downgrade,
            device=deployment.device,
            rolled_back=None,
            refused=None,
        )
