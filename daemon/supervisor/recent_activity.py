"""Activity of the last minute: rates and latencies between now and an earlier look at the status.

The engines' counters and histograms only grow, so the difference of two looks is what happened between them. Figures since the
start of the daemon would hide today's trouble behind yesterday's requests.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..ipc.stats import Distribution, Stage
from .status import ServiceStatus

#: Seconds that the figures cover (fewer on a younger daemon), and seconds between two looks.
WINDOW_S = 60.0
_INTERVAL_S = 5.0


@dataclass(frozen=True)
class Look:
    """The counters at one moment (time.monotonic() seconds)."""

    at_s: float
    #: By the lower-case names of `Counter`.
    counters: Mapping[str, int] = field(default_factory=dict)
    latency: Mapping[Stage, Distribution] = field(default_factory=dict)
    #: The serving engine and the processor time that it has used.
    engine_pid: int | None = None
    engine_cpu_s: float | None = None


@dataclass(frozen=True)
class RecentActivity:
    """Activity of the last `window_s` seconds."""

    window_s: float
    #: By the lower-case names of `ipc.stats.Counter`; 0 for each before the first engine.
    counters: Counter[str]
    latency: Mapping[Stage, Distribution]
    #: Processors that the serving engine used on average; None without one, and for one that has just begun.
    engine_cpus: float | None


class RecentLooks:
    """The looks of the last minute, oldest first."""

    def __init__(self, started_s: float) -> None:
        """`started_s` is when all counters were 0."""
        self._looks = deque([Look(started_s)])

    def note(self, look: Look) -> None:
        """Keep a look, and drop those that are older than the window."""
        self._looks.append(look)
        while look.at_s - self._looks[0].at_s > WINDOW_S + _INTERVAL_S / 2:
            self._looks.popleft()

    def until(self, now: Look) -> RecentActivity:
        """Return what happened from the oldest look to `now`."""
        then = self._looks[0]
        return RecentActivity(
            window_s=max(0.0, now.at_s - then.at_s),
            counters=Counter({name: count - then.counters.get(name, 0) for name, count in now.counters.items()}),
            latency={
                stage: found - then.latency[stage] if stage in then.latency else found
                for stage, found in now.latency.items()
            },
            engine_cpus=self._engine_cpus(now),
        )

    def _engine_cpus(self, now: Look) -> float | None:
        """Return the average since the oldest look at the same engine."""
        for look in self._looks:
            if look.engine_pid == now.engine_pid and look.engine_cpu_s is not None and now.engine_cpu_s is not None:
                seconds = now.at_s - look.at_s
                return (now.engine_cpu_s - look.engine_cpu_s) / seconds if seconds > 0 else None
        return None


class ActivityMonitor:
    """Looks at the status every few seconds; `run` until cancelled."""

    def __init__(self, snapshot: Callable[[], ServiceStatus]) -> None:
        self._snapshot = snapshot
        self._looks = RecentLooks(time.monotonic())

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            self._looks.note(_look(self._snapshot()))

    def until(self, status: ServiceStatus) -> RecentActivity:
        """Return the activity of the last minute before this status."""
        return self._looks.until(_look(status))


def _look(status: ServiceStatus) -> Look:
    engine = status.engine
    usage = engine.usage if engine is not None else None
    return Look(
        time.monotonic(),
        status.counters,
        status.latency,
        engine.pid if engine is not None else None,
        usage.cpu_s if usage is not None else None,
    )
