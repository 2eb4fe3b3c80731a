"""How many requests each model version has answered, over all runs of the daemon."""

from __future__ import annotations

from functools import cached_property

from ..store.store import Store
from ..supervisor.engine_pool import Engines

#: The fact in which the store keeps it.
SERVED = "served"


class ServedCounts:
    """What was counted before this run began, and what this run's engines count."""

    def __init__(self, engines: Engines, store: Store) -> None:
        self._engines = engines
        self._store = store

    @cached_property
    def _earlier(self) -> dict[str, int]:
        """What the store held before this run recorded anything in it."""
        found = ((stored.version, stored.facts.get(SERVED)) for stored in self._store.versions())
        return {version: count for version, count in found if isinstance(count, int)}

    def of(self, version: str) -> int:
        """Requests that this version has answered until now."""
        return self._earlier.get(version, 0) + self._engines.counts.served_by_version(version)
