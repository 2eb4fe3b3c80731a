"""Pool of engine processes: the serving one, a warm standby, one that is starting, and a spare one without a model.

A swap pauses the serving engine after its current inference and lets the new one serve; requests wait in their slots in
between. The old engine stays warm for `standby_s`, for an instant rollback.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..clients import Lease, Leases, Wanted
from ..config.config import Config
from ..failpoints import failpoint
from ..ipc.control import WAKE_SIGNAL
from ..ipc.messages import (
    Broken,
    Drain,
    Drained,
    Draining,
    EngineMessage,
    Failed,
    FirstObservation,
    Gpu,
    Link,
    Load,
    Loading,
    Pause,
    Paused,
    Serve,
    Serving,
    ServingModel,
    Warming,
)
from ..ipc.release import RELEASE_MISMATCH, installed_mismatch
from ..ipc.stats import Counter
from .deployment import Deployment, EngineStartError
from .engine_channels import EngineChannels
from .engine_counters import EngineCounters
from .engine_process import EngineEnded, EngineProcess, exit_reason
from .engine_start import ACCEPT_S, EngineUnusable, load_model
from .example_copy import ExampleCopy
from .spare_engine import SpareEngine
from .standby import Standby

log = logging.getLogger(__name__)

#: Limit of the wait for the current inference in a swap; a slower engine is killed.
_PAUSE_LIMIT_S = 60.0
#: A warm engine answers "serve" at once; a slower one is killed.
_SERVE_LIMIT_S = 5.0
_STOP_LIMIT_S = 5.0
#: A stopping engine waits this long for clients to make room for deferred replies.
_DELIVERY_LIMIT_S = 2.0
_DELIVERY_LOOK_S = 0.005
#: Fields of Ready that describe the engine and not its model.
_OF_THE_ENGINE = ("backend", "memory_locked", "priority")


class EnginePool:
    """Starts, swaps and stops engine processes.

    `on_lost` is called when the serving engine has died; `on_ended` for every engine that has ended, while its counters
    can still be read.
    """

    def __init__(
        self,
        config: Config,
        leases: Leases,
        *,
        on_lost: Callable[[EngineProcess, int], None],
        on_ended: Callable[[EngineProcess], None],
        on_broken: Callable[[Lease, str, bool], None],
        on_death: Callable[[EngineProcess, int], None],
        calm_s: Callable[[], float],
    ) -> None:
        self._config = config
        self._leases = leases
        self._on_lost = on_lost
        self._on_ended = on_ended
        self._on_broken = on_broken
        self._on_death = on_death
        self._serial = 0
        self._watchers: dict[EngineProcess, asyncio.Task[None]] = {}
        self._standby = Standby(self.drop_standby)
        #: A second engine of the served deployment, with standby = "loaded".
        self._twin = Standby(lambda: None)
        self.spare = SpareEngine(config, calm_s)
        self.channels = EngineChannels(config, leases)
        self.counters = EngineCounters(self._watchers.keys())
        self.serving: EngineProcess | None = None
        self._example_copy = ExampleCopy()
        #: Report of an engine of another release than this daemon: the package was upgraded, and no engine can start.
        self.release_mismatch: str | None = None

    # Life

    async def start(self, deployment: Deployment, on_stage: Callable[[str], None]) -> EngineProcess:
        """Start an engine that has loaded and warmed up `deployment` and mapped every channel, but does not serve yet.

        `on_stage` is called with "loading" and "warming". Raises EngineStartError once that engine has ended.
        """
        is_ready = self.spare.ready
        spare = self.spare.take()
        if spare is not None:
            spare.in_background = False
            try:
                return await self._assign(spare, deployment, on_stage, accept_s=ACCEPT_S if is_ready else None)
            except EngineUnusable as failure:
                log.warning(
                    "the spare engine %d is not used: %s; another engine is started", spare.pid, failure.message
                )
        engine = EngineProcess()
        await engine.start()
        engine = await self._assign(engine, deployment, on_stage)
        self.spare.engine_started()
        return engine

    async def start_beside(self, deployment: Deployment) -> EngineProcess:
        """As `start`, with a low priority until it serves, and without the spare engine."""
        engine = EngineProcess()
        await engine.start()
        engine.in_background = True
        return await self._assign(engine, deployment, lambda stage: None)

    async def _assign(
        self,
        engine: EngineProcess,
        deployment: Deployment,
        on_stage: Callable[[str], None],
        *,
        accept_s: float | None = None,
    ) -> EngineProcess:
        """Let a process load and warm up `deployment`; `accept_s`: how long it may take until it has the order to.

        Raises EngineUnusable if the process is at fault and not the model, otherwise EngineStartError.
        """
        self._serial += 1
        engine.assign(self._serial, deployment, lambda engine, message: self._on_message(engine, message, on_stage))
        watcher = self._watchers[engine] = asyncio.create_task(self._watch(engine))
        try:
            await self._warm_up(engine, accept_s)
        except BaseException:
            engine.kill()
            await asyncio.shield(watcher)
            raise
        self.channels.open(engine)
        return engine

    async def _warm_up(self, engine: EngineProcess, accept_s: float | None) -> None:
        answer = await load_model(engine, self._load(engine), accept_s=accept_s, load_s=self._config.load_s)
        if isinstance(answer, Failed):
            if answer.error == RELEASE_MISMATCH:
                self.release_mismatch = answer.message
            raise EngineStartError(answer.stage, answer.error, answer.message)
        self.release_mismatch = None

    def _load(self, engine: EngineProcess) -> Load:
        return Load(
            package=str(engine.deployment.package),
            device=engine.deployment.device,
            called=engine.deployment.called,
            allow_code=self._config.allow_code,
            threads=self._config.threads,
            memory_bytes=self._config.engine_memory_bytes,
            lock_memory=self._config.lock_memory,
            priority=self._config.engine_priority,
            version=engine.deployment.version,
            serial=engine.serial,
            spin_us=self._config.spin_us,
            wake_ahead=self._config.wake_ahead == "auto",
            request_bell=self._leases.request_bell if self._config.transport == "named" else None,
            trusted_transport=self._config.transport == "named",
            register_bytes=self._config.register_bytes,
            device_leaves=self._config.device_leaves,
            serving_model=self._serving_model(),
        )

    async def check_release(self) -> None:
        """Raise EngineStartError if an engine started now would refuse to run under this daemon."""
        self.release_mismatch = await installed_mismatch()
        if self.release_mismatch is not None:
            raise EngineStartError("start", RELEASE_MISMATCH, self.release_mismatch)

    def _serving_model(self) -> ServingModel | None:
        """The serving engine's use of its GPU, for an engine that is to be loaded there as well; None without one."""
        serving = self.serving
        if serving is None or serving.ready is None or serving.ready.gpu is None:
            return None
        return ServingModel(
            serving.ready.device, serving.ready.gpu["model_bytes"], package=str(serving.deployment.package)
        )

    async def swap(self, new: EngineProcess) -> float:
        """Let `new` serve in place of the serving engine, which stays warm; returns the pause in seconds.

        In between, requests wait in their slots. Raises EngineStartError if `new` died at this moment; then the old
        engine continues to serve.
        """
        old = self.serving
        start_s = time.monotonic()
        new.in_background = False
        if old is not None:
            await self._pause(old)
        failpoint("swap.paused")
        try:
            await self._let_serve(new)
        except EngineStartError:
            if old is not None and old.alive:
                old.send(Serve())  # if it has died as well, `on_lost` was called for it
            raise
        pause_s = time.monotonic() - start_s
        self.serving, new.served_from_s = new, time.monotonic()
        assert new.ready is not None
        self._leases.model_wants = Wanted(0, request_bytes=new.ready.request_bytes, reply_bytes=new.ready.reply_bytes)
        if old is not None and old.alive:
            self.keep_standby(old)
        return pause_s

    async def _pause(self, old: EngineProcess) -> None:
        paused = old.expect(Paused)
        old.send(Pause())
        self.ring()
        try:
            message = await asyncio.wait_for(paused, _PAUSE_LIMIT_S)
        except EngineEnded:
            return  # the next engine finds the requests that it had taken
        except asyncio.TimeoutError:
            log.error("engine %d did not finish its inference within %g s: killing it", old.pid, _PAUSE_LIMIT_S)
            await self._kill(old)
            return
        self.channels.note_deferred(old, message.deferred)

    async def _let_serve(self, new: EngineProcess) -> None:
        serving = new.expect(Serving)
        new.send(Serve())
        try:
            await asyncio.wait_for(serving, _SERVE_LIMIT_S)
        except EngineEnded as ended:
            raise EngineStartError("swap", "the engine died", exit_reason(ended.status)) from ended
        except asyncio.TimeoutError:
            await self._kill(new)  # before the old one goes on: never two
            raise EngineStartError("swap", "TimeoutError", f"it did not begin within {_SERVE_LIMIT_S:g} s") from None
        if not new.alive:
            raise EngineStartError("swap", "the engine died", "as soon as it served")

    def ring(self) -> None:
        """Wake the serving engine if it sleeps, so that it reads its messages."""
        if self.serving is not None:
            _wake(self.serving)

    async def _kill(self, engine: EngineProcess) -> None:
        engine.ended_on_purpose = True
        engine.kill()
        if engine in self._watchers:
            await asyncio.wait((self._watchers[engine],))

    @property
    def standby(self) -> EngineProcess | None:
        """The warm standby engine, or None."""
        return self._standby.engine

    def keep_standby(self, engine: EngineProcess) -> None:
        """Keep an engine that does not serve as the warm standby for `standby_s`."""
        self.drop_standby()
        self._standby.keep(engine, self._config.standby_s)

    @property
    def twin(self) -> EngineProcess | None:
        """The second engine of the served deployment, or None."""
        return self._twin.engine

    def keep_twin(self, engine: EngineProcess) -> None:
        """Keep a warm engine of the served deployment, to take over if the serving one dies."""
        self.drop_twin()
        self._twin.keep(engine, None)

    def claim_standby(self, deployment: Deployment) -> EngineProcess | None:
        """Return a standby engine that runs this deployment; the caller lets it serve or keeps it again."""
        return self._twin.claim(deployment) or self._standby.claim(deployment)

    def drop_standby(self) -> asyncio.Task[None] | None:
        """Stop the previous engine; return the task that does so, or None."""
        return self._retire(self._standby.forget())

    def drop_twin(self) -> asyncio.Task[None] | None:
        """Stop the second engine of the served deployment; return the task that does so, or None."""
        return self._retire(self._twin.forget())

    def _retire(self, engine: EngineProcess | None) -> asyncio.Task[None] | None:
        if engine is None:
            return None
        engine.retiring = asyncio.create_task(self.discard(engine))
        return engine.retiring

    async def stop_all(self) -> None:
        """Stop the serving engine after its current inference, and the standby; requests wait for the next engine."""
        self.drop_standby()
        self.drop_twin()
        engine, self.serving = self.serving, None
        if engine is not None:
            await self._pause(engine)
            await self.discard(engine)
        retiring = [engine.retiring for engine in self._watchers if engine.retiring is not None]
        if retiring:
            await asyncio.wait(retiring)

    async def discard(self, engine: EngineProcess) -> None:
        """Stop an engine that does not serve, once it has delivered its deferred replies."""
        until = time.monotonic() + _DELIVERY_LIMIT_S
        while engine.alive and self.channels.has_deferred(engine) and time.monotonic() < until:
            await asyncio.sleep(_DELIVERY_LOOK_S)
        self.channels.close(engine)
        watcher = self._watchers.get(engine)
        await engine.stop(_STOP_LIMIT_S)
        if watcher is not None:
            await asyncio.wait((watcher,))

    async def drain(self, timeout_s: float) -> None:
        """Let the serving engine answer the requests that clients have sent, then stop every engine."""
        engine, self.serving = self.serving, None
        if engine is not None:
            watcher = self._watchers[engine]
            draining, drained = engine.expect(Draining), engine.expect(Drained)
            engine.send(Drain())
            _wake(engine)
            await asyncio.wait((drained, watcher), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if drained.done():
                await asyncio.wait((watcher,), timeout=_STOP_LIMIT_S)  # it leaves
            elif _is_in_hand(engine) or (draining.done() and draining.result().waiting):
                log.warning("%g s were not enough to answer what waited: stopping anyway", timeout_s)
        await self.kill()

    async def kill(self) -> None:
        """Kill every engine and wait for their ends."""
        self._standby.forget()
        self._twin.forget()
        self.serving = None
        watchers = dict(self._watchers)
        for engine in watchers:
            engine.ended_on_purpose = True
            engine.kill()
        await self.spare.kill()
        if watchers:
            await asyncio.wait(watchers.values())

    def end_all(self) -> None:
        """Kill every engine; the current deployment is started again as after any death."""
        for engine in self._watchers:
            engine.ended_on_purpose = True
            engine.kill()

    async def _watch(self, engine: EngineProcess) -> None:
        status = await engine.wait()
        was_serving = engine is self.serving
        self.channels.close(engine)
        for standby in (self._standby, self._twin):
            if engine is standby.engine:
                standby.forget()
        if was_serving:
            self.serving = None
        assert engine.stats is not None
        self.counters.keep(engine)
        self.channels.report_lost(engine)
        if status:
            self._on_death(engine, status)
        del self._watchers[engine]
        if was_serving:
            self._on_lost(engine, status)
        self._on_ended(engine)
        engine.close()

    def _on_message(self, engine: EngineProcess, message: EngineMessage, on_stage: Callable[[str], None]) -> None:
        match message:
            case Loading():
                engine.stage = "load"
                on_stage("loading")
            case Warming():
                engine.stage = "warm up"
                on_stage("warming")
            case Broken():
                lease = self._leases.get(message.channel)
                # Ignored for a client that resized or left before the engine had opened its channel.
                if lease is not None and lease.channel_info.identity.generation == message.generation:
                    if message.detail is not None:
                        log.warning("the channel of client %d %s", message.channel, message.detail)
                    self._on_broken(lease, message.reason, message.blame)
            case Gpu():
                if engine.ready is not None:
                    engine.ready = replace(engine.ready, gpu=message.gpu)
            case Link():
                if engine.ready is not None:
                    engine.ready = replace(engine.ready, remote=message.remote)
            case FirstObservation():
                engine.first_observation = message.entries
            case _:
                pass  # awaited with expect()

    # Recording

    def record(self, record_ring: int, channel: int | None) -> None:
        """From now on whichever engine serves puts what it serves on this record ring; the descriptor stays the caller's."""
        self.channels.record(record_ring, channel)
        self.ring()

    def end_recording(self) -> None:
        """Report the end of the recording to the engines."""
        self.channels.end_recording()
        self.ring()

    async def copy_example(self, memory: int) -> tuple[int, int]:
        """As `ExampleCopy.copy`, from the serving engine."""
        return await self._example_copy.copy(self.serving, memory, self.ring)

    # Status

    def versions(self) -> set[str]:
        """The versions whose packages an engine may read in now or later: a policy imports when it likes. Any thread."""
        return {engine.deployment.version for engine in tuple(self._watchers) if engine.retiring is None}

    @property
    def model(self) -> dict[str, Any] | None:
        """The serving engine's description of its model; None without an engine.

        `observation` of a model without an example is that of its first request. Its contract does not contain that:
        it promises nothing, and refuses nobody.
        """
        if self.serving is None or self.serving.ready is None:
            return None
        model = {key: value for key, value in vars(self.serving.ready).items() if key not in _OF_THE_ENGINE}
        if model["remote"] is None:
            del model["remote"]  # only a link has it
        first = self.serving.first_observation
        if model["observation"] is not None or first is None:
            return {**model, "observation_source": None if model["observation"] is None else "example"}
        return {**model, "observation": first, "observation_source": "first request"}

    def channel_counts(self, channel: int, attached_ns: int) -> tuple[int, int, int]:
        """(served, errors, monotonic ns of the last) of a channel's client in the serving engine, which attached then."""
        if self.serving is None or self.serving.stats is None:
            return 0, 0, 0
        return self.serving.stats.channel(channel, attached_ns)


def _wake(engine: EngineProcess) -> None:
    """End an engine's sleep.

    Not by the requests' doorbell: a client can truncate or overwrite that semaphore, and a process that has it mapped
    dies of it. The supervisor must never map it. A signal ends the engine's wait; it is not sent during an inference,
    which might use a library that a signal disturbs.
    """
    if engine.ready is not None and engine.stats is not None and not _is_in_hand(engine):
        engine.kill(WAKE_SIGNAL)


def _is_in_hand(engine: EngineProcess) -> bool:
    return engine.stats is not None and engine.stats.words[Counter.CHANNEL] != 0
