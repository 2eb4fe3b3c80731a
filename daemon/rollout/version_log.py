"""What is written down of the versions, in the order of what happened, while nobody waits for the disk."""

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

#: The fact in which the store keeps it.
SERVED = "served"


class RequestCounts:
    """What was counted before this run began, and what this run's engines count."""

    def __init__(self, engines: EnginePool, store: Store) -> None:
        self._engines = engines
        self._store = store

    @cached_property
    def _earlier(self) -> dict[str, int]:
        """What the store held before this run recorded anything in it."""
        found = ((stored.version, stored.facts.get(SERVED)) for stored in self._store.versions())
        return {version: count for version, count in found if isinstance(count, int)}

    def of(self, version: str) -> int:
        """Requests that this version has answered until now."""
        return self._earlier.get(version, 0) + self._engines.counters.served_by_version(version)


class VersionLog:
    """One writer at a time, in a thread; `close` returns once everything is on the disk."""

    def __init__(self, store: Store, engines: EnginePool) -> None:
        self._store = store
        self.request_counts = RequestCounts(engines, store)
        self._turn = asyncio.Lock()
        self._writers: set[asyncio.Task[None]] = set()

    async def make_current(self, deployment: Deployment, *, allow_downgrade: bool) -> None:
        """From now on a restart serves this one; raises StoreUnavailable."""
        async with self._turn:
            await asyncio.to_thread(self._make_current, deployment, allow_downgrade=allow_downgrade)

    def set_metadata(self, version: str, facts: dict[str, Any], *, then_current: Deployment | None = None) -> None:
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

        self.enqueue(work)

    def record_requests(self, engine: EngineProcess) -> None:
        """An engine has ended: how many requests its version has answered."""
        version = engine.deployment.version
        if count := self.request_counts.of(version):
            self.set_metadata(version, {SERVED: count})

    def enqueue(self, work: Callable[[], None]) -> None:
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

    def _make_current(self, deployment: Deployment, *, allow_downgrade: bool = False) -> None:
        self._store.make_current(
            deployment.version, allow_downgrade=allow_downgrade, device=deployment.device, taken_back=None, refused=None
        )
