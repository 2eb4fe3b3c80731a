"""Supervisor: owner of the service's names, leases, engines and state.

It restarts an engine that dies, with a backoff, while requests wait in their slots. Before that it looks for the cause in
the clients: a damaged shared object evicts its client; a request that was running is evidence against its client
(see clients/engine_deaths.py). A model on probation is blamed instead of the clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from shmserve.directories import check_service_name
from shmserve.doorbell import create_doorbell, unlink_doorbell

from ..clients import CLEAR_S, AccessPolicy, IntegrityCheck, Lease, Leases, NameRegistry
from ..config.config import Config
from ..host.logging import ENGINE_DIED, SERVING
from ..host.process_usage import process_usage
from ..host.service_lock import ServiceLock
from ..ipc.release import RELEASE_MISMATCH
from ..ipc.stats import Counter, Stage
from ..store.ingest_progress import IngestProgress
from ..varlink.peer import Peer
from .backoff import STEADY_S, Backoff
from .deployment import Deployment, EngineStartError
from .device_areas import DeviceAreas
from .engine_pool import EnginePool
from .engine_process import EngineProcess, exit_reason
from .loaded_standby import LoadedStandby
from .status import ClientStatus, EngineStatus, ServiceState, ServiceStatus

log = logging.getLogger(__name__)

_T = TypeVar("_T")
#: A task that was cancelled has killed what it was starting by then.
_CANCEL_AGAIN_S = 5.0


class Supervisor:
    """One run of the daemon. `open`, then `run` until `stop`, then `close`."""

    def __init__(
        self,
        config: Config,
        *,
        on_evict: Callable[[Lease, str], None],
        on_detach: Callable[[Lease], None],
        on_crash: Callable[[EngineProcess], None],
        on_ended: Callable[[EngineProcess], None],
        is_on_probation: Callable[[EngineProcess], bool],
    ) -> None:
        """`on_evict` ends the connection of a client that broke its channel, `on_detach` that of one that may attach
        again at once. `on_crash` is called when the serving engine has died, before it is restarted; `on_ended` for
        every engine that has ended, while its counts can still be read. `is_on_probation` reports whether the engine's
        model, rather than its clients, is to blame for a death.
        """
        self.config = config
        self.directory = config.runtime_dir / check_service_name(config.name)
        self.epoch = secrets.randbits(62)
        self.started_ns = time.monotonic_ns()
        self.state = ServiceState.STARTING
        self.error: str | None = None
        self.restarts = 0
        self.ingest = IngestProgress()
        #: The deployment to serve; an update replaces it once the new model serves.
        self.deployment: Deployment | None = None
        #: Set once the first model serves.
        self.begun = asyncio.Event()
        self._on_evict = on_evict
        self._on_detach = on_detach
        self._on_crash = on_crash
        self._is_on_probation = is_on_probation
        #: Held by a restart, an update or a rollback while it changes which engine serves.
        self.changing = asyncio.Lock()
        self._updating = False
        self.access_policy = AccessPolicy(config)
        self._lock = ServiceLock(self.directory)
        self._names = NameRegistry(self.directory)
        self.leases = Leases(config, self._names, self.epoch, on_bell_removed=self._renew_request_bell)
        self._integrity = IntegrityCheck()
        self.engines = EnginePool(
            config,
            self.leases,
            on_lost=self._lost,
            on_ended=on_ended,
            on_broken=lambda lease, reason, blame: on_evict(lease, reason) if blame else on_detach(lease),
            on_death=self._examine,
            calm_s=self._calm_s,
        )
        self.device_areas = DeviceAreas(config, self.leases, self.engines)
        self.loaded_standby = LoadedStandby(config, self.engines, self._calm_s)
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._crashed = asyncio.Event()
        #: A client caused the last death of an engine.
        self._of_client = False
        #: The last engine to die had served for a while.
        self._was_steady = False
        #: Since when the state has been ready; None in any other.
        self._ready_from_s: float | None = None

    # Life

    def open(self) -> None:
        """Take the service's name; raises AlreadyRunning or OSError."""
        self._lock.acquire(self.access_policy.directory_mode)
        swept = self._names.sweep()
        if swept:
            log.info("removed %d shared-memory objects that an earlier daemon left", swept)
        if self.config.transport == "named":
            self._integrity.open()
            self._create_request_bell()

    def close(self) -> None:
        """Remove every name; may be called twice and on a half-opened supervisor."""
        for lease in self.leases:
            self.leases.release(lease.channel)
        unlink_doorbell(self.leases.request_bell)
        self._lock.release()

    def stop(self) -> None:
        """Begin to drain; `run` returns when that is done."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def unless_stopped(self, task: asyncio.Task[_T]) -> _T | None:
        """Return the task's result; None, with the task cancelled, once the service stops."""
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            if not self.stopping:
                return task.result()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # it may have failed at the same moment
                await task
            return None
        finally:
            stop.cancel()

    async def run(self, deployment: Deployment, on_first: Callable[[], None] = lambda: None) -> None:
        """Keep an engine serving, at first of `deployment`, until `stop`; `on_first` is called once the first one serves.

        Raises EngineStartError if the first engine fails to start, or if no further one can start (see ipc/release.py).
        """
        self.deployment = deployment
        stop = asyncio.create_task(self._stopping.wait())
        try:
            first = asyncio.create_task(self.start_serving())
            await asyncio.wait((first, stop), return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                first.cancel()  # stopped while the model still loads: no request is in flight
                with contextlib.suppress(asyncio.CancelledError):
                    await first
                self.enter(ServiceState.DRAINING)
                return
            first.result()
            on_first()
            self.begun.set()
            keeper = asyncio.create_task(self._keep_serving())
            beside = [asyncio.create_task(_tend(each.run())) for each in (self.engines.spare, self.loaded_standby)]
            await asyncio.wait((keeper, stop), return_when=asyncio.FIRST_COMPLETED)
            for task in (*beside, keeper):
                await cancel(task)
            self.enter(ServiceState.DRAINING)
            with contextlib.suppress(asyncio.TimeoutError):  # a swap in progress ends soon
                await asyncio.wait_for(self.changing.acquire(), self.config.drain_s)
            await self.engines.drain(self.config.drain_s)
        finally:
            stop.cancel()
            await self.engines.kill()

    async def start_serving(self) -> None:
        """Start an engine of the current deployment, and let it serve unless another one does by then.

        Raises EngineStartError.
        """
        deployment = self.deployment
        assert deployment is not None
        self._enter_unless_serving(ServiceState.LOADING)
        try:
            engine = self.engines.claim_standby(deployment)  # warm already, after a new model was rolled back
            if engine is None:
                engine = await self.engines.start(deployment, self._enter_stage)
            # Not held until here: an update in progress may take minutes, and this engine serves until then.
            async with self.changing:
                if self.engines.serving is None and self.deployment == deployment:
                    await self.engines.swap(engine)
                    self.now_serving(engine)
                    return
        except EngineStartError as failure:
            if self.engines.serving is None:
                self.error = str(failure)
            self._enter_unless_serving(ServiceState.FAILED)
            raise
        await self.engines.discard(engine)

    def fail(self, error: str) -> None:
        """Enter the state failed, with the reason."""
        self.error = error
        self.enter(ServiceState.FAILED)

    def begin_update(self) -> None:
        """Enter the state updating if a model serves: another is being started beside it."""
        self._updating = True
        if self.state is ServiceState.READY:
            self.enter(ServiceState.UPDATING)

    def end_update(self) -> None:
        """Leave the state updating, after success or failure."""
        self._updating = False
        if self.state is ServiceState.UPDATING:
            self.enter(ServiceState.READY)

    def revive(self) -> None:
        """Start the current deployment, and try again until it serves."""
        self.enter(ServiceState.LOADING)
        self._crashed.set()

    def now_serving(self, engine: EngineProcess) -> None:
        """Log that an engine has begun to serve, and enter the state."""
        assert engine.ready is not None
        infer_ms = engine.ready.infer_ms
        log.info(
            "serving %s version %s on %s%s, %s backend",
            engine.ready.name,
            engine.deployment.version,
            engine.ready.device,
            f", {infer_ms:.2f} ms an inference" if infer_ms is not None else "",
            engine.ready.backend,
            extra={"message_id": SERVING},
        )
        self.error = None
        self.enter(ServiceState.UPDATING if self._updating else ServiceState.READY)

    async def _keep_serving(self) -> None:
        backoff = Backoff()
        while True:
            await self._crashed.wait()
            self._crashed.clear()
            while self.engines.serving is None:
                answered = self._was_steady and self.engines.spare.ready
                now_s = time.monotonic()
                delay_s = 0.0 if answered else backoff.delay_s(self.deployment, now_s, of_client=self._of_client)
                # No client is to blame if the next one cannot be started, and it has not served.
                self._of_client = self._was_steady = False
                if delay_s:
                    log.warning("the engine is started again in %g s; waiting requests stay", delay_s)
                    await asyncio.sleep(delay_s)
                async with self.changing:
                    pass  # an update in place may start its engine instead
                if self.engines.serving is not None:
                    break
                try:
                    await self.start_serving()
                except EngineStartError as failure:
                    if failure.error == RELEASE_MISMATCH:
                        raise  # no engine can start until the daemon is restarted with the new release
                    log.error("%s", failure)

    def _lost(self, engine: EngineProcess, status: int) -> None:
        self.restarts += 1
        served_from_s = engine.served_from_s
        self._was_steady = served_from_s is not None and time.monotonic() - served_from_s > STEADY_S
        log.error("engine %d %s", engine.pid, exit_reason(status), extra={"message_id": ENGINE_DIED})
        self._on_crash(engine)
        self.revive()

    def _examine(self, engine: EngineProcess, status: int) -> None:
        """Record whether a client caused the death of an engine, and evict it if it must go."""
        self._of_client = False
        if engine.ended_on_purpose or self._is_on_probation(engine):
            return
        if self.config.transport == "named" and self._find_tampering():
            self._of_client = True
            return
        assert engine.stats is not None
        leases = (self.leases.of_generation(*channel) for channel in engine.stats.in_hand())
        blamed = [lease for lease in leases if lease is not None]
        if not blamed:
            return
        self._of_client = True
        now_s = time.monotonic()
        self.leases.deaths.note([(lease.peer, lease.attached_ns / 1e9) for lease in blamed], now_s)
        log.warning(
            "engine %d ended with a request in hand of client %s, which runs alone and behind the others for %g s",
            engine.pid,
            " or ".join(f"{lease.channel} ({lease.peer})" for lease in blamed),
            CLEAR_S,
        )
        for lease in blamed:
            verdict = self.leases.deaths.verdict(lease.peer, now_s)
            if verdict is None or not self.config.ban_s:
                continue
            attached = self.leases.get(lease.channel) is lease
            if verdict.whole_user or not attached:
                self.leases.bans.add(lease.peer, verdict.reason, now_s, whole_user=verdict.whole_user)
            if attached:
                self._on_evict(lease, verdict.reason)
        for lease in self.leases:
            self.engines.channels.suspect(lease)

    def _find_tampering(self) -> bool:
        """Evict clients whose shared objects are damaged; report whether any object is."""
        is_damaged = False
        for lease in self.leases:
            damage = self._integrity.of_lease(lease)
            if damage is not None:
                self._on_evict(lease, damage)
                is_damaged = True
        damage = self._integrity.of_bell(self.leases.request_bell)
        if damage is not None:
            self._replace_request_bell(damage)
        return is_damaged or damage is not None

    def _create_request_bell(self) -> None:
        create_doorbell(self.leases.request_bell, 0o660 if self.config.serves_group else 0o600)

    def _renew_request_bell(self) -> None:
        """Replace the request bell whose name was removed, while no client would notice the engine's restart."""
        if self.begun.is_set():  # the end of the first engine would end the daemon
            self._replace_request_bell("it was removed")

    def _replace_request_bell(self, damage: str) -> None:
        """Replace the request bell: every client may ring it, so none can be blamed, and no engine can wait on it."""
        log.error("the doorbell of all clients is replaced, and all must attach again: %s", damage)
        unlink_doorbell(self.leases.request_bell)
        self.leases.request_bell = self._names.fresh()
        self._create_request_bell()
        for lease in self.leases:
            self._on_detach(lease)
        self.engines.end_all()

    def enter(self, state: ServiceState) -> None:
        """Enter a state; draining is the last."""
        if state is not self.state and self.state is not ServiceState.DRAINING:
            log.info("state %s", state.value)
            self.state = state
            self._ready_from_s = time.monotonic() if state is ServiceState.READY else None
            self._changed.set()
            self._changed = asyncio.Event()

    def _enter_unless_serving(self, state: ServiceState) -> None:
        if self.engines.serving is None:
            self.enter(state)

    def _enter_stage(self, stage: str) -> None:
        """Show the stage, "loading" or "warming", of an engine that is started while none serves."""
        self._enter_unless_serving(ServiceState(stage))

    def _calm_s(self) -> float:
        """Return for how long a model has served with no update under way; 0 if that is not so."""
        return time.monotonic() - self._ready_from_s if self._ready_from_s is not None else 0.0

    async def wait_change(self) -> None:
        """Return at the next change of the state."""
        await self._changed.wait()

    def reloaded(self, applied: Mapping[str, Any]) -> None:
        """Apply changed settings; most are read when they are needed."""
        if "max_rate_per_user" in applied:
            self.engines.channels.limit_rates()

    # Clients

    def send_lease(self, lease: Lease) -> None:
        """Report a new lease, or a lease's new generation, to the engines."""
        self.engines.channels.attach(lease)

    def ban(self, peer: Peer, reason: str) -> None:
        """Refuse this client, which is being evicted, for `ban_s`."""
        self.leases.bans.add(peer, reason, time.monotonic())

    def detach(self, channel: int) -> None:
        """Release the channel of a client that is gone, and report it to the engines."""
        if self.leases.release(channel) is not None:
            self.engines.channels.detach(channel)

    # Recording

    def record(self, record_ring: int, channel: int | None) -> None:
        """Let every engine that serves write to a record ring; the descriptor stays the caller's."""
        self.engines.record(record_ring, channel)

    def end_recording(self) -> None:
        self.engines.end_recording()

    # Status

    @property
    def model(self) -> dict[str, Any] | None:
        """The serving engine's description of its model; None without an engine."""
        return self.engines.model

    def snapshot(self) -> ServiceStatus:
        """Return the service's status at this moment."""
        now_ns = time.monotonic_ns()
        engines, standby = self.engines, self.engines.standby
        return ServiceStatus(
            name=self.config.name,
            transport=self.config.transport,
            directory=self.directory,
            max_clients=self.config.max_clients,
            uptime_s=(now_ns - self.started_ns) / 1e9,
            state=self.state,
            error=self.error,
            ingest=self.ingest.to_json(),
            is_recording=engines.channels.recording,
            release_mismatch=engines.release_mismatch,
            restarts=self.restarts,
            engine=self._engine_status(now_ns),
            standby_version=standby.deployment.version if standby is not None else None,
            spare=engines.spare.status,
            loaded_standby=(self.loaded_standby.state, self.loaded_standby.reason),
            model=engines.model,
            clients=tuple(self._client_status(lease, now_ns) for lease in self.leases),
            counters=engines.counters.totals(),
            latency={stage: latency for stage in Stage if (latency := engines.counters.latency(stage)) is not None},
        )

    def _engine_status(self, now_ns: int) -> EngineStatus | None:
        engine = self.engines.serving
        if engine is None:
            return None
        age_s = None
        if engine.stats is not None:
            age_s = max(0.0, (now_ns - engine.stats.words[Counter.HEARTBEAT_NS]) / 1e9)
        ready = engine.ready
        return EngineStatus(
            engine.pid,
            engine.deployment.version,
            age_s,
            backend=ready.backend if ready is not None else None,
            memory_locked=ready.memory_locked if ready is not None else None,
            priority=ready.priority if ready is not None else None,
            usage=process_usage(engine.pid),
        )

    def _client_status(self, lease: Lease, now_ns: int) -> ClientStatus:
        served, errors, last_ns = self.engines.channel_counts(lease.channel, lease.attached_ns)
        return ClientStatus(
            channel=lease.channel,
            pid=lease.peer.pid,
            uid=lease.peer.uid,
            program=lease.program,
            trusted=lease.trusted,
            attached_s=(now_ns - lease.attached_ns) / 1e9,
            slots=lease.wanted.slots,
            generation=lease.channel_info.identity.generation,
            served=served,
            errors=errors,
            last_s=(now_ns - last_ns) / 1e9 if last_ns else None,
            device_bytes=lease.device_bytes,
        )


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task that has no end, and wait for its end; raise what it raised instead.

    Again if need be: before Python 3.12 wait_for() loses a cancellation that comes together with its result, and the task
    would go on for ever.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_CANCEL_AGAIN_S)
    if not task.cancelled():
        task.result()


async def _tend(keep: Coroutine[Any, Any, None]) -> None:
    """Run what keeps a further engine; the service goes on without it if it fails."""
    try:
        await keep
    except Exception:
        log.exception("no further engine is kept beside the serving one")
