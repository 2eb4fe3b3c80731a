"""Answers io.shmserve.Admin: what the operator sees and changes."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from shmserve import __version__
from shmserve.varlink import optional

from .stats import Stage
from .supervisor import Supervisor
from .varlink_connection import Connection
from .varlink_interface import Interface

NAME = "io.shmserve.Admin"

DESCRIPTION = """\
# What an operator asks of the service.
interface io.shmserve.Admin

# Everything about the service at this moment.
method Status() -> (status: object)

# Returns once the service is ready, or has failed, or after `timeout_s` seconds.
method WaitReady(timeout_s: ?float) -> (state: string, error: ?string)

# Answer what clients have sent, then exit; as SIGTERM.
method Drain() -> ()
"""


class AdminService:
    """The methods, for one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def interface(self) -> Interface:
        return Interface(
            NAME, DESCRIPTION, {"Status": self.status, "WaitReady": self.wait_ready, "Drain": self.drain}
        )

    async def status(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return {"status": status(self._supervisor)}

    async def wait_ready(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        timeout_s = optional(parameters, "timeout_s", float)
        supervisor = self._supervisor

        async def settled() -> None:
            while supervisor.state not in ("ready", "failed", "draining"):
                await supervisor.wait_change()

        try:
            await asyncio.wait_for(settled(), timeout_s)
        except asyncio.TimeoutError:
            pass
        return {"state": supervisor.state, "error": supervisor.error}

    async def drain(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._supervisor.stop()
        return {}


def status(supervisor: Supervisor) -> dict[str, Any]:
    """One picture of the service, as `shmserve-admin status --json` prints it."""
    now_ns = time.monotonic_ns()
    engine = supervisor.engines.serving
    counters = supervisor.engines.counters()
    served = counters["served"]
    return {
        "service": supervisor.config.name,
        "state": supervisor.state,
        "error": supervisor.error,
        "transport": supervisor.config.transport,
        "release": __version__,
        "pid": os.getpid(),
        "uptime_s": round((now_ns - supervisor.started_ns) / 1e9, 3),
        "directory": str(supervisor.directory),
        "engine": None
        if engine is None
        else {
            "pid": engine.pid,
            "restarts": supervisor.restarts,
            "heartbeat_age_s": supervisor.heartbeat_age_s(),
            "busy_s": round(counters["busy_ns"] / 1e9, 3),
        },
        "model": supervisor.engines.model,
        "clients": [
            {
                "id": lease.channel,
                "pid": lease.peer.pid,
                "uid": lease.peer.uid,
                "program": lease.program,
                "trusted": lease.trusted,
                "attached_s": round((now_ns - lease.attached_ns) / 1e9, 3),
                "slots": lease.wanted.slots,
                "generation": lease.lane.identity.generation,
                **_counts(supervisor, lease.channel, now_ns),
            }
            for lease in supervisor.leases
        ],
        "requests": {
            "served": served,
            "failed": counters["failed"],
            "rejected": counters["rejected"],
            **{name: counters[name] for name in ("expired", "stale", "cancelled", "superseded", "lost", "resets")},
            "in_place": counters["in_place"],
            "batches": counters["batches"],
        },
        "latency": {stage.name.lower(): _percentiles(supervisor, stage) for stage in Stage},
    }


def _counts(supervisor: Supervisor, channel: int, now_ns: int) -> dict[str, Any]:
    served, errors, last_ns = supervisor.engines.channel_counts(channel)
    return {
        "served": served,
        "errors": errors,
        "last_s": round((now_ns - last_ns) / 1e9, 3) if last_ns else None,
    }


def _percentiles(supervisor: Supervisor, stage: Stage) -> dict[str, float | int | None] | None:
    latency = supervisor.engines.latency(stage)
    if latency is None or not latency.total:
        return None
    found: dict[str, float | int | None] = {"count": latency.total}
    for percent, name in ((50, "p50_us"), (90, "p90_us"), (99, "p99_us"), (99.9, "p999_us")):
        value = latency.percentile_us(percent)
        found[name] = None if value is None else round(value, 1)
    return found
