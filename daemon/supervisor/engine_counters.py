"""Counters of all engines of this run, living and ended."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Collection

from ..ipc.stats import Distribution, Stage
from .engine_process import EngineProcess


class EngineCounters:
    """Sums over `living`, a view that the owner maintains, and over the engines given to `keep`."""

    def __init__(self, living: Collection[EngineProcess]) -> None:
        self._living = living
        self._totals: Tally[str] = Tally()
        self._served_by: Tally[str] = Tally()
        self._past_latency: dict[Stage, Distribution] = {}

    def keep(self, engine: EngineProcess) -> None:
        """Add the counters of an engine that has ended, before it leaves `living` and its stats are closed."""
        assert engine.stats is not None
        counters = engine.stats.counters()
        self._totals.update(counters)
        self._served_by[engine.deployment.version] += counters["served"]
        for stage in Stage:
            latency, past = engine.stats.distribution(stage), self._past_latency.get(stage)
            self._past_latency[stage] = latency if past is None else past + latency

    def served_by_version(self, version: str) -> int:
        """Return the number of requests that this version answered in this run of the daemon."""
        living = (
            engine for engine in self._living if engine.deployment.version == version and engine.stats is not None
        )
        return self._served_by[version] + sum(engine.stats.counters()["served"] for engine in living if engine.stats)

    def totals(self) -> Tally[str]:
        """Return the sums over all engines of this run."""
        total = self._totals.copy()
        for engine in self._living:
            if engine.stats is not None:
                total.update(engine.stats.counters())
        for word in ("heartbeat_ns", "channel"):
            total.pop(word, None)
        return total

    def latency(self, stage: Stage = Stage.TOTAL) -> Distribution | None:
        """Return the durations inside the service over all engines of this run; None before the first engine."""
        total = self._past_latency.get(stage)
        for engine in self._living:
            if engine.stats is not None:
                now = engine.stats.distribution(stage)
                total = now if total is None else total + now
        return total
