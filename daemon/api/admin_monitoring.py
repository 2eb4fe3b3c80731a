"""Monitoring part of io.shmserve.Admin: status, clients in pages, latency histograms, metrics."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

from shmserve import __version__
from shmserve.varlink import INVALID_PARAMETER, Reply, VarlinkError

from ..host.logging import how_to_read
from ..ipc.stats import BUCKET_BOUNDS_US, Distribution, Stage
from ..supervisor import ClientStatus, RecentActivity, ServiceStatus, SpareStatus, Supervisor
from ..varlink.interface import Answer, Connection, Method
from ..varlink.peer import Peer
from .link_status import is_link, remote_json

DESCRIPTION = """\

# Every client; must be called with 'more', because a message has room for some hundred.
method Clients() -> (clients: []object)

# How many requests took how long in each stage, over this run of the daemon. Bucket i counts those from
# bounds_us[i] to bounds_us[i + 1]; it only grows, so the difference of two answers is what happened between.
method Latencies() -> (bounds_us: []float, stages: object)

# Write the observation of the model's warm-up to the memory (memfd_create) whose file descriptor comes with the call: the
# metadata of its structure and then its payload, as in a slot. 0 bytes: the model has none, or its engine is busy.
method Example() -> (version: ?string, metadata_bytes: int, payload_bytes: int)

# OpenMetrics text, in pieces: must be called with 'more'.
method Metrics() -> (text: string)
"""

_CLIENTS_A_REPLY = 64
_TEXT_A_REPLY = 24 * 1024
#: Bytes of a status's JSON; a varlink message has 64 KiB.
_STATUS_LIMIT = 48 * 1024
_MODEL_LIMIT = 16 * 1024
#: Left out of a model's description that is too long; a client's `metadata` and `Describe` have all of it.
_LONG_OF_A_MODEL = ("contract", "observation", "action", "metadata")


#: Counters of requests in a status, in the order in which they are printed.
_REQUEST_COUNTERS = (
    "served",
    "failed",
    "rejected",
    "expired",
    "stale",
    "cancelled",
    "superseded",
    "lost",
    "resets",
    "in_place",
    "cut_through",
    "clamped",
    "out_of_range",
    "batches",
)


class AdminMonitoring:
    """The methods, for one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def methods(self) -> dict[str, Method]:
        return {"Clients": self.clients, "Latencies": self.latencies, "Example": self.example, "Metrics": self.metrics}

    def snapshot_for(self, peer: Peer) -> ServiceStatus:
        """Return the status as this peer may see it."""
        status = self._supervisor.snapshot()
        return status if self._supervisor.access_policy.may_operate(peer) else without_others(status, peer.uid)

    async def clients(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> AsyncGenerator[Answer, None]:
        clients = [client_json(client) for client in self.snapshot_for(connection.peer).clients]
        for first in range(0, max(1, len(clients)), _CLIENTS_A_REPLY):
            page = clients[first : first + _CLIENTS_A_REPLY]
            yield Reply({"clients": page}, continues=first + _CLIENTS_A_REPLY < len(clients))

    async def latencies(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        latency = self._supervisor.snapshot().latency
        stages = {stage.name.lower(): list(distribution.counts) for stage, distribution in latency.items()}
        return {"bounds_us": BUCKET_BOUNDS_US, "stages": stages}

    async def example(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        try:
            (memory,) = fds
            fcntl.fcntl(memory, fcntl.F_GET_SEALS)  # only memory has seals: a write to a pipe could block the engine
        except (ValueError, OSError) as error:
            raise VarlinkError(INVALID_PARAMETER, {"parameter": "the memory's file descriptor"}) from error
        model = self._supervisor.model
        metadata_bytes, payload_bytes = await self._supervisor.engines.copy_example(memory)
        version = model["version"] if model is not None else None
        return {"version": version, "metadata_bytes": metadata_bytes, "payload_bytes": payload_bytes}

    async def metrics(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> AsyncGenerator[Answer, None]:
        from .metrics import openmetrics  # on demand: the import takes a tenth of a second

        text = openmetrics(self.snapshot_for(connection.peer))
        for first in range(0, len(text), _TEXT_A_REPLY):
            piece = text[first : first + _TEXT_A_REPLY]
            yield Reply({"text": piece}, continues=first + _TEXT_A_REPLY < len(text))


def without_others(status: ServiceStatus, uid: int) -> ServiceStatus:
    """Return the status without the pid and the program of other users' clients: /proc may be closed to this user as well."""
    clients = tuple(each if each.uid == uid else replace(each, pid=0, program="") for each in status.clients)
    return replace(status, clients=clients)


def status_json(status: ServiceStatus, recent: RecentActivity) -> dict[str, Any]:
    """Return the status as `shmserve-admin status --json` prints it."""
    engine, counters = status.engine, status.counters
    return {
        "service": status.name,
        "state": status.state.value,
        "error": status.error,
        "ingest": status.ingest,
        "transport": status.transport,
        "release": __version__,
        "pid": os.getpid(),
        "uptime_s": round(status.uptime_s, 3),
        "directory": str(status.directory),
        "logs": how_to_read(),
        "engine": None
        if engine is None
        else {
            "pid": engine.pid,
            "restarts": status.restarts,
            "heartbeat_age_s": engine.heartbeat_age_s,
            "busy_s": round(counters["busy_ns"] / 1e9, 3),
            # Since its start, all threads; null if it has just ended.
            "cpu_s": engine.usage and engine.usage.cpu_s,
            "resident_bytes": engine.usage and engine.usage.resident_bytes,
            "backend": engine.backend,
            # Requests for which the engine woke up ahead, those that did not come, and how long it was awake for both.
            "wake_ahead": {
                "met": counters["ahead_met"],
                "missed": counters["ahead_missed"],
                "awake_s": round(counters["ahead_ns"] / 1e9, 3),
            },
            "spare": spare_json(status.spare),
            **_loaded_standby_json(status),
            # Only what was requested.
            **({"memory_locked": engine.memory_locked} if engine.memory_locked is not None else {}),
            **({"priority": engine.priority} if engine.priority is not None else {}),
        },
        "model": status.model,
        "recording": status.is_recording,
        "clients": [client_json(client) for client in status.clients],
        "requests": {name: counters[name] for name in _REQUEST_COUNTERS},
        **({"remote": remote_json(status)} if is_link(status) else {}),
        # Over this run of the daemon.
        "latency": _latency_json(status.latency),
        "recent": _recent_json(recent),
    }


def _latency_json(latency: Mapping[Stage, Distribution]) -> dict[str, dict[str, float | int | None] | None]:
    return {stage.name.lower(): _percentiles(latency.get(stage)) for stage in Stage}


def _recent_json(recent: RecentActivity) -> dict[str, Any]:
    """Return the activity of the last `window_s` seconds; shares and processors are averages."""
    seconds, counters = max(recent.window_s, 1e-9), recent.counters
    return {
        "window_s": round(recent.window_s, 1),
        "served_per_s": round(counters["served"] / seconds, 2),
        "engine_busy_share": round(counters["busy_ns"] / 1e9 / seconds, 4),
        "engine_cpus": None if recent.engine_cpus is None else round(recent.engine_cpus, 3),
        "requests": {name: counters[name] for name in _REQUEST_COUNTERS},
        "latency": _latency_json(recent.latency),
    }


def spare_json(spare: SpareStatus) -> dict[str, Any]:
    """Return the state of the spare engine: off, waiting, starting, ready, no memory or failed."""
    return {
        "state": spare.state.value,
        "pid": spare.pid,
        "memory_bytes": spare.memory_bytes,
        "reason": spare.reason,
        "uses": spare.uses,
    }


def _loaded_standby_json(status: ServiceStatus) -> dict[str, Any]:
    state, reason = status.loaded_standby
    return {} if state == "off" else {"standby": {"state": state, "reason": reason}}


def client_json(client: ClientStatus) -> dict[str, Any]:
    """Return one client's status as `shmserve-admin clients --json` prints it."""
    return {
        "id": client.channel,
        "pid": client.pid,
        "uid": client.uid,
        "program": client.program,
        "trusted": client.trusted,
        "attached_s": round(client.attached_s, 3),
        "slots": client.slots,
        "generation": client.generation,
        "served": client.served,
        "errors": client.errors,
        "last_s": None if client.last_s is None else round(client.last_s, 3),
        "device_bytes": client.device_bytes,
    }


def _percentiles(latency: Distribution | None) -> dict[str, float | int | None] | None:
    if latency is None or not latency.total:
        return None
    values: dict[str, float | int | None] = {"count": latency.total}
    for percent, name in ((50, "p50_us"), (90, "p90_us"), (99, "p99_us"), (99.9, "p999_us")):
        value = latency.percentile_us(percent)
        values[name] = None if value is None else round(value, 1)
    return values


def fitted(status: dict[str, Any]) -> dict[str, Any]:
    """Return `status` cut to the size of one message; a cut is marked by `clients_total` or `shortened`."""
    clients, model = status["clients"], status["model"]
    if model is not None and _size(model) > _MODEL_LIMIT:
        model = {**{key: value for key, value in model.items() if key not in _LONG_OF_A_MODEL}, "shortened": True}
    fitting = {**status, "model": model, "clients_total": len(clients)}
    room = _STATUS_LIMIT - _size({**fitting, "clients": []})
    shown = []
    for client in clients:
        room -= _size(client) + 2
        if room < 0:
            break
        shown.append(client)
    return {**fitting, "clients": shown}


def _size(value: Any) -> int:
    return len(json.dumps(value))
