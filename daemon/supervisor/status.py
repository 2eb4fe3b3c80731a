"""State and status of the service, for everything that shows them.

The supervisor is the only writer. The admin interface, the metrics, the recorder and the notifications for systemd render
one immutable snapshot of it and never reach into the parts that it is read from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..host.process_usage import ProcessUsage
from ..ipc.stats import Distribution, Stage
from .spare_engine import SpareStatus


class ServiceState(Enum):
    """Progress of one run of the daemon; the values are the words of the interfaces and of the metrics."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    UPDATING = "updating"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class ClientStatus:
    """One attached client; `served`, `errors` and `last_s` are counted by the serving engine."""

    channel: int
    pid: int
    uid: int
    program: str
    trusted: bool
    attached_s: float
    slots: int
    generation: int
    served: int
    errors: int
    #: Seconds since its last request ended; None before the first.
    last_s: float | None
    #: GPU memory for its arrays.
    device_bytes: int = 0


@dataclass(frozen=True)
class EngineStatus:
    """The serving engine."""

    pid: int
    version: str
    heartbeat_age_s: float | None
    #: `native` or `pure`; None before its model is warm.
    backend: str | None
    #: Whether its memory is locked; None if lock_memory is false.
    memory_locked: bool | None
    #: Its real-time priority, 0 if it was refused; None if engine_priority is 0.
    priority: int | None
    #: None if it has just ended.
    usage: ProcessUsage | None


@dataclass(frozen=True)
class ServiceStatus:
    """The service at one moment."""

    name: str
    transport: str
    directory: Path
    max_clients: int
    uptime_s: float
    state: ServiceState
    error: str | None
    #: The package that is being received, as IngestProgress reports it.
    ingest: dict[str, Any] | None
    is_recording: bool
    #: Why no engine can be started, after an upgrade of the installed package.
    release_mismatch: str | None
    #: Engines that died and were replaced.
    restarts: int
    engine: EngineStatus | None
    standby_version: str | None
    spare: SpareStatus
    #: State of the second engine of the served version (standby = "loaded"), and why there is none.
    loaded_standby: tuple[str, str | None]
    #: The serving engine's description of its model.
    model: dict[str, Any] | None
    clients: tuple[ClientStatus, ...]
    #: Sums over all engines of this run, by the lower-case names of `Counter`.
    counters: Mapping[str, int]
    #: Durations inside the service over all engines of this run; empty before the first engine.
    latency: Mapping[Stage, Distribution]

    @property
    def is_settled(self) -> bool:
        """Whether waiting changes nothing: a model serves, also while its successor loads, or none will."""
        if self.state is ServiceState.UPDATING:
            return self.engine is not None
        return self.state in (ServiceState.READY, ServiceState.FAILED, ServiceState.DRAINING)
