"""Answers io.shmserve.Admin: status, updates and versions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from shmserve.errors import ModelPackageError
from shmserve.shortened import shortened
from shmserve.varlink import INVALID_PARAMETER, Reply, VarlinkError, optional

from ..config.config import ConfigError
from ..config.sources import Settings
from ..ipc.release import RELEASE_MISMATCH
from ..rollout import DEVICE_MEMORY_SHORT, DEVICE_MISSING, ReportStep, Rollout, RolloutRefused, UpdateOptions
from ..store.errors import DowngradeRefused, StoreUnavailable, VersionUnknown
from ..store.store import Store
from ..supervisor import ActivityMonitor, EngineStartError, ServiceStatus, Supervisor
from ..varlink.interface import Answer, Connection, Interface, Method
from ..varlink.peer import Peer
from . import admin_config, admin_monitoring, admin_recording
from .admin_config import AdminConfig
from .admin_monitoring import AdminMonitoring, fitted, status_json
from .admin_recording import AdminRecording
from .link_status import link_problem

log = logging.getLogger(__name__)

#: Limits in characters of an operator's note and of an error's text.
NOTE_LIMIT = 500
MESSAGE_TEXT = 4000
_PROBLEMS_SHOWN = 10

NAME = "io.shmserve.Admin"

#: Methods that change nothing, for members of the service's group. `Example` is not one: each call fills memory that counts
#: against the service's limit for as long as the caller keeps it.
LOOKING = frozenset({"Status", "WaitReady", "Versions", "Config", "Clients", "Latencies", "Metrics"})

DESCRIPTION = """\
# Operations on the service. Members of its group may call Status, WaitReady, Versions, Config, Clients, Latencies and
# Metrics, and see no pid and no program of other users' clients; every other call gets PermissionDenied.
interface io.shmserve.Admin

# Everything about the service at this moment.
method Status() -> (status: object)

# Returns once the service is ready, or has failed, or after `timeout_s` seconds.
# `ingest`: the package being received, by step, source, bytes and of.
method WaitReady(timeout_s: ?float) -> (state: string, error: ?string, settled: bool, ingest: ?object)

# Serve the model package behind the file descriptor that comes with the call: a directory, or a tar of
# one. Must be called with 'more': every reply but the last tells a step. `device`: null for the present one.
method UpdateModel(name: ?string, device: ?string, in_place: ?bool, allow_contract_change: ?bool,
  allow_downgrade: ?bool, note: ?string) -> (step: string, elapsed_s: float, detail: object, result: ?object)

# Serve an earlier version again; `version` may be abbreviated, null is the one before. As UpdateModel.
method Rollback(version: ?string) -> (step: string, elapsed_s: float, detail: object, result: ?object)

# The versions that are kept, latest first.
method Versions() -> (versions: []object)

# Answer the requests that clients have sent, then exit; as SIGTERM.
method Drain() -> ()

# `reason` is busy, contract, device, device_memory, downgrade, no_previous, package, engine, restart, store, record_ring,
# unknown_client, unknown_version or stopping.
error Refused (reason: string, message: string)
"""


class AdminService:
    """The methods, for one supervisor."""

    def __init__(
        self,
        supervisor: Supervisor,
        rollout: Rollout,
        store: Store,
        settings: Settings,
        activity: ActivityMonitor,
    ) -> None:
        self._supervisor = supervisor
        self._activity = activity
        self._config = AdminConfig(NAME, settings, supervisor.config, supervisor.reloaded)
        self._monitoring = AdminMonitoring(supervisor)
        self._recording = AdminRecording(NAME, supervisor)
        self._rollout = rollout
        self._store = store
        #: When (time.monotonic()) and why the last update or rollback was refused; None if it was not.
        self._last_refusal: tuple[float, str] | None = None

    def interface(self) -> Interface:
        methods: dict[str, Method] = {
            "Status": self.status,
            "WaitReady": self.wait_ready,
            "UpdateModel": self.update_model,
            "Rollback": self.rollback,
            "Versions": self.versions,
            "Drain": self.drain,
        }
        methods |= self._config.methods() | self._monitoring.methods() | self._recording.methods()
        parts = (DESCRIPTION, admin_config.DESCRIPTION, admin_monitoring.DESCRIPTION, admin_recording.DESCRIPTION)
        return Interface(NAME, "".join(parts), methods, self._refusal)

    def _refusal(self, peer: Peer, method: str) -> str | None:
        """Return the setting that denies this peer the method, or None."""
        return None if method in LOOKING or self._supervisor.access_policy.may_operate(peer) else "admin_uids"

    async def update_model(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> AsyncGenerator[Answer, None]:
        if len(fds) != 1:
            raise VarlinkError(INVALID_PARAMETER, {"parameter": "the package's file descriptor"})
        options = UpdateOptions(
            device=optional(parameters, "device", str),
            in_place=optional(parameters, "in_place", bool) or False,
            allow_contract_change=optional(parameters, "allow_contract_change", bool) or False,
            allow_downgrade=optional(parameters, "allow_downgrade", bool) or False,
            note=shortened(optional(parameters, "note", str) or "", NOTE_LIMIT),
        )
        uid = connection.peer.uid
        name = shortened(optional(parameters, "name", str) or "package", NOTE_LIMIT)
        log.info("update requested by %s", connection.peer)
        async with aclosing(
            self._step_replies(lambda report: self._rollout.update(fds[0], name, uid, options, report))
        ) as replies:
            async for reply in replies:
                yield reply

    async def rollback(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> AsyncGenerator[Answer, None]:
        version = optional(parameters, "version", str)
        log.info("rollback requested by %s", connection.peer)
        async with aclosing(self._step_replies(lambda report: self._rollout.rollback(version, report))) as replies:
            async for reply in replies:
                yield reply

    async def versions(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return {"versions": versions(self._supervisor.snapshot(), self._rollout, self._store)}

    async def status(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        status = self._monitoring.snapshot_for(connection.peer)
        mismatch = [status.release_mismatch] if status.release_mismatch else []
        problems = [*self._store.problems[-_PROBLEMS_SHOWN:], *mismatch, *link_problem(status.model)]
        document = {
            **status_json(status, self._activity.until(status)),
            "rolled_back": self._rollout.rolled_back,
            "refused": self._refused_json(),
            "problems": problems,
        }
        return {"status": fitted(document)}

    async def _step_replies(
        self, change: Callable[[ReportStep], Awaitable[dict[str, Any]]]
    ) -> AsyncGenerator[Answer, None]:
        """Yield the steps of an update or a rollback as replies; closing this generator cancels it."""
        start_s = time.monotonic()
        steps: asyncio.Queue[Reply | None] = asyncio.Queue()  # None: the end

        def reply(step: str, detail: dict[str, Any], result: dict[str, Any] | None = None) -> Reply:
            elapsed_s = round(time.monotonic() - start_s, 4)
            fields = {"step": step, "elapsed_s": elapsed_s, "detail": detail, "result": result}
            return Reply(fields, continues=result is None)

        task = asyncio.ensure_future(change(lambda step, detail: steps.put_nowait(reply(step, detail))))
        task.add_done_callback(lambda ended: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield step
            result = task.result()
            self._last_refusal = None
            yield reply("done", {}, result)
        except (RolloutRefused, ConfigError, ModelPackageError, StoreUnavailable, EngineStartError) as error:
            log.warning("the model is not replaced: %s", error)
            message = shortened(str(error), MESSAGE_TEXT)
            self._last_refusal = time.monotonic(), message
            raise VarlinkError(f"{NAME}.Refused", {"reason": _reason(error), "message": message}) from error
        finally:
            task.cancel()
            await asyncio.wait((task,))

    def _refused_json(self) -> dict[str, Any] | None:
        """Return why the last update or rollback was refused, and how long ago."""
        if self._last_refusal is None:
            return None
        at_s, message = self._last_refusal
        return {"message": message, "ago_s": round(time.monotonic() - at_s, 1)}

    async def wait_ready(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        timeout_s = optional(parameters, "timeout_s", float)
        supervisor = self._supervisor

        async def settled() -> None:
            while not supervisor.snapshot().is_settled:
                await supervisor.wait_change()

        is_settled = False
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(settled(), timeout_s)
            is_settled = True
        status = supervisor.snapshot()
        return {
            "state": status.state.value,
            "error": status.error,
            "settled": is_settled,
            "ingest": status.ingest,
        }

    async def drain(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._supervisor.stop()
        return {}


def _reason(error: Exception) -> str:
    if isinstance(error, RolloutRefused):
        return error.reason
    if isinstance(error, EngineStartError) and error.error == DEVICE_MEMORY_SHORT:
        return "device_memory"
    if isinstance(error, EngineStartError) and error.error == RELEASE_MISMATCH:
        return "restart"
    if isinstance(error, ConfigError) or (isinstance(error, EngineStartError) and error.error == DEVICE_MISSING):
        return "device"
    if isinstance(error, VersionUnknown):
        return "unknown_version"
    if isinstance(error, StoreUnavailable):
        return "store"
    if isinstance(error, DowngradeRefused):
        return "downgrade"
    return "engine" if isinstance(error, EngineStartError) else "package"


def versions(status: ServiceStatus, rollout: Rollout, store: Store) -> list[dict[str, Any]]:
    """Return the metadata of each kept version, the last sent first."""
    serving = status.engine.version if status.engine is not None else None
    current, previous = store.current(), rollout.before()
    documents = []
    for stored in store.versions():
        documents.append(
            {
                "version": stored.version,
                "serving": stored.version == serving,
                "standby": stored.version == status.standby_version,
                "current": current is not None and current.digest == stored.digest,
                "previous": previous is not None and previous.digest == stored.digest,
                "source": stored.source,
                "note": stored.note,
                "release": stored.release,
                "uid": stored.uid,
                "added_s": stored.added_s,
                "size_bytes": stored.size_bytes,
                "device": stored.metadata.get("device"),
                "rolled_back": stored.metadata.get("rolled_back"),
                "refused": stored.metadata.get("refused"),
                "served": rollout.version_log.request_counts.of(stored.version),
            }
        )
    return documents
