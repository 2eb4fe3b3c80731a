"""Answers io.shmserve.Admin: what the operator sees and changes."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from shmserve import __version__
from shmserve.errors import ModelPackageError
from shmserve.shortened import shortened
from shmserve.varlink import INVALID_PARAMETER, Reply, VarlinkError, optional

from ..config.config import ConfigError
from ..config.sources import Settings
from ..host.logging import how_to_read
from ..ipc.release import RELEASE_MISMATCH
from ..ipc.stats import Stage
from ..rollout.rollout import DEVICE_MEMORY_SHORT, DEVICE_MISSING, ChangeRefused, ModelChanges, Progress, Wish
from ..store.errors import DowngradeRefused, StoreUnavailable, VersionUnknown
from ..store.store import Store
from ..supervisor.deployment import EngineFailed
from ..supervisor.supervisor import Supervisor
from ..varlink.interface import Answer, Connection, Interface, Method
from . import admin_config as admin_settings
from . import admin_monitoring as admin_sight
from . import admin_recording
from .admin_config import AdminSettings
from .admin_monitoring import AdminSight, fitted
from .admin_recording import AdminRecording

log = logging.getLogger(__name__)

#: Characters of an operator's note, and of an error's text, that are kept.
NOTE_LIMIT = 500
MESSAGE_TEXT = 4000
_PROBLEMS_SHOWN = 10

NAME = "io.shmserve.Admin"

DESCRIPTION = """\
# What an operator asks of the service.
interface io.shmserve.Admin

# Everything about the service at this moment.
method Status() -> (status: object)

# Returns once the service is ready, or has failed, or after `timeout_s` seconds.
# `intake`: what is taken in at the moment, by step, source, bytes and of.
method WaitReady(timeout_s: ?float) -> (state: string, error: ?string, settled: bool, intake: ?object)

# Serve the model package behind the file descriptor that comes with the call: a directory, or a tar of
# one. Must be called with 'more': every reply but the last tells a step. `device`: null for the present one.
method UpdateModel(name: ?string, device: ?string, in_place: ?bool, allow_contract_change: ?bool,
  allow_downgrade: ?bool, note: ?string) -> (step: string, elapsed_s: float, detail: object, result: ?object)

# Serve an earlier version again; `version` may be abbreviated, null is the one before. As UpdateModel.
method Rollback(version: ?string) -> (step: string, elapsed_s: float, detail: object, result: ?object)

# The versions that are kept, latest first.
method Versions() -> (versions: []object)

# Answer what clients have sent, then exit; as SIGTERM.
method Drain() -> ()

# `reason` is busy, contract, device, device_memory, downgrade, no_previous, package, engine, restart, store, record_ring,
# unknown_client, unknown_version or stopping.
error Refused (reason: string, message: string)
"""


class AdminService:
    """The methods, for one supervisor."""

    def __init__(self, supervisor: Supervisor, changes: ModelChanges, store: Store, settings: Settings) -> None:
        self._supervisor = supervisor
        self._settings = AdminSettings(NAME, settings, supervisor.config, supervisor.reloaded)
        self._sight = AdminSight(supervisor, clients)
        self._recording = AdminRecording(NAME, supervisor)
        self._changes = changes
        self._store = store

    def interface(self) -> Interface:
        methods: dict[str, Method] = {
            "Status": self.status,
            "WaitReady": self.wait_ready,
            "UpdateModel": self.update_model,
            "Rollback": self.rollback,
            "Versions": self.versions,
            "Drain": self.drain,
        }
        methods |= self._settings.methods() | self._sight.methods() | self._recording.methods()
        parts = (DESCRIPTION, admin_settings.DESCRIPTION, admin_sight.DESCRIPTION, admin_recording.DESCRIPTION)
        return Interface(NAME, "".join(parts), methods)

    async def update_model(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> AsyncGenerator[Answer, None]:
        if len(fds) != 1:
            raise VarlinkError(INVALID_PARAMETER, {"parameter": "the package's file descriptor"})
        wish = Wish(
            device=optional(parameters, "device", str),
            in_place=optional(parameters, "in_place", bool) or False,
            allow_contract_change=optional(parameters, "allow_contract_change", bool) or False,
            allow_downgrade=optional(parameters, "allow_downgrade", bool) or False,
            note=shortened(optional(parameters, "note", str) or "", NOTE_LIMIT),
        )
        uid = connection.peer.uid
        name = shortened(optional(parameters, "name", str) or "package", NOTE_LIMIT)
        log.info("update asked for by %s", connection.peer)
        async with aclosing(_told(lambda told: self._changes.update(fds[0], name, uid, wish, told))) as replies:
            async for reply in replies:
                yield reply

    async def rollback(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> AsyncGenerator[Answer, None]:
        version = optional(parameters, "version", str)
        log.info("rollback asked for by %s", connection.peer)
        async with aclosing(_told(lambda told: self._changes.rollback(version, told))) as replies:
            async for reply in replies:
                yield reply

    async def versions(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return {"versions": versions(self._supervisor, self._changes, self._store)}

    async def status(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        other_release = self._supervisor.engines.other_release
        problems = [*self._store.problems[-_PROBLEMS_SHOWN:], *([other_release] if other_release else [])]
        found = {"taken_back": self._changes.taken_back, "problems": problems}
        return {"status": fitted({**status(self._supervisor), **found})}

    async def wait_ready(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        timeout_s = optional(parameters, "timeout_s", float)
        supervisor = self._supervisor

        async def settled() -> None:
            # While an update is on its way the model before it serves, unless it was stopped for it.
            while supervisor.state not in ("ready", "failed", "draining") and not (
                supervisor.state == "updating" and supervisor.engines.serving is not None
            ):
                await supervisor.wait_change()

        is_settled = False
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(settled(), timeout_s)
            is_settled = True
        return {
            "state": supervisor.state,
            "error": supervisor.error,
            "settled": is_settled,
            "intake": supervisor.intake.to_json(),
        }

    async def drain(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._supervisor.stop()
        return {}


async def _told(change: Callable[[Progress], Awaitable[dict[str, Any]]]) -> AsyncGenerator[Answer, None]:
    """A change's steps as replies while it goes on; closing this generator cancels the change."""
    began = time.monotonic()
    steps: asyncio.Queue[Reply | None] = asyncio.Queue()  # None: that was the last one

    def reply(step: str, detail: dict[str, Any], result: dict[str, Any] | None = None) -> Reply:
        elapsed_s = round(time.monotonic() - began, 4)
        fields = {"step": step, "elapsed_s": elapsed_s, "detail": detail, "result": result}
        return Reply(fields, continues=result is None)

    task = asyncio.ensure_future(change(lambda step, detail: steps.put_nowait(reply(step, detail))))
    task.add_done_callback(lambda ended: steps.put_nowait(None))
    try:
        while (step := await steps.get()) is not None:
            yield step
        yield reply("done", {}, task.result())
    except (ChangeRefused, ConfigError, ModelPackageError, StoreUnavailable, EngineFailed) as error:
        log.warning("the model stays: %s", error)
        raise VarlinkError(
            f"{NAME}.Refused", {"reason": _reason(error), "message": shortened(str(error), MESSAGE_TEXT)}
        ) from error
    finally:
        task.cancel()
        await asyncio.wait((task,))


def _reason(error: Exception) -> str:
    if isinstance(error, ChangeRefused):
        return error.reason
    if isinstance(error, EngineFailed) and error.error == DEVICE_MEMORY_SHORT:
        return "device_memory"
    if isinstance(error, EngineFailed) and error.error == RELEASE_MISMATCH:
        return "restart"
    if isinstance(error, ConfigError) or (isinstance(error, EngineFailed) and error.error == DEVICE_MISSING):
        return "device"
    if isinstance(error, VersionUnknown):
        return "unknown_version"
    if isinstance(error, StoreUnavailable):
        return "store"
    if isinstance(error, DowngradeRefused):
        return "downgrade"
    return "engine" if isinstance(error, EngineFailed) else "package"


def versions(supervisor: Supervisor, changes: ModelChanges, store: Store) -> list[dict[str, Any]]:
    """What is known of each kept version, the last sent first."""
    serving, standby = supervisor.engines.serving, supervisor.engines.standby
    current, previous = store.current(), changes.before()
    found = []
    for stored in store.versions():
        found.append(
            {
                "version": stored.version,
                "serving": serving is not None and serving.served.version == stored.version,
                "standby": standby is not None and standby.served.version == stored.version,
                "current": current is not None and current.digest == stored.digest,
                "previous": previous is not None and previous.digest == stored.digest,
                "source": stored.source,
                "note": stored.note,
                "release": stored.release,
                "uid": stored.uid,
                "added_s": stored.added_s,
                "size_bytes": stored.size_bytes,
                "device": stored.facts.get("device"),
                "taken_back": stored.facts.get("taken_back"),
                "refused": stored.facts.get("refused"),
                "served": changes.notes.counts.of(stored.version),
            }
        )
    return found


def status(supervisor: Supervisor) -> dict[str, Any]:
    """One picture of the service, as `shmserve-admin status --json` prints it."""
    now_ns = time.monotonic_ns()
    engine = supervisor.engines.serving
    counters = supervisor.engines.counts.counters()
    served = counters["served"]
    return {
        "service": supervisor.config.name,
        "state": supervisor.state,
        "error": supervisor.error,
        "intake": supervisor.intake.to_json(),
        "transport": supervisor.config.transport,
        "release": __version__,
        "pid": os.getpid(),
        "uptime_s": round((now_ns - supervisor.started_ns) / 1e9, 3),
        "directory": str(supervisor.directory),
        "logs": how_to_read(),
        "engine": None
        if engine is None
        else {
            "pid": engine.pid,
            "restarts": supervisor.restarts,
            "heartbeat_age_s": supervisor.heartbeat_age_s(),
            "busy_s": round(counters["busy_ns"] / 1e9, 3),
            "native": engine.ready is not None and engine.ready.compiled,
        },
        "model": supervisor.engines.model,
        "recording": supervisor.engines.channels.recording,
        "clients": clients(supervisor),
        "requests": {
            "served": served,
            "failed": counters["failed"],
            "rejected": counters["rejected"],
            **{name: counters[name] for name in ("expired", "stale", "cancelled", "superseded", "lost", "resets")},
            "in_place": counters["in_place"],
            "cut_through": counters["cut_through"],
            "clamped": counters["clamped"],
            "out_of_range": counters["out_of_range"],
            "batches": counters["batches"],
        },
        "latency": {stage.name.lower(): _percentiles(supervisor, stage) for stage in Stage},
    }


def clients(supervisor: Supervisor) -> list[dict[str, Any]]:
    """What is known of each client."""
    now_ns = time.monotonic_ns()
    return [
        {
            "id": lease.channel,
            "pid": lease.peer.pid,
            "uid": lease.peer.uid,
            "program": lease.program,
            "trusted": lease.trusted,
            "attached_s": round((now_ns - lease.attached_ns) / 1e9, 3),
            "slots": lease.wanted.slots,
            "generation": lease.channel_info.identity.generation,
            **_counts(supervisor, lease.channel, now_ns),
        }
        for lease in supervisor.leases
    ]


def _counts(supervisor: Supervisor, channel: int, now_ns: int) -> dict[str, Any]:
    served, errors, last_ns = supervisor.engines.channel_counts(channel)
    return {
        "served": served,
        "errors": errors,
        "last_s": round((now_ns - last_ns) / 1e9, 3) if last_ns else None,
    }


def _percentiles(supervisor: Supervisor, stage: Stage) -> dict[str, float | int | None] | None:
    latency = supervisor.engines.counts.latency(stage)
    if latency is None or not latency.total:
        return None
    found: dict[str, float | int | None] = {"count": latency.total}
    for percent, name in ((50, "p50_us"), (90, "p90_us"), (99, "p99_us"), (99.9, "p999_us")):
        value = latency.percentile_us(percent)
        found[name] = None if value is None else round(value, 1)
    return found
