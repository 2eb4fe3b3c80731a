"""The engines of a service: the one that serves, one kept warm behind it, and one on its way."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter as Tally
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import Config
from .control import WAKE_SIGNAL
from .engine_process import EngineEnded, EngineProcess, exit_reason
from .failpoints import failpoint
from .leases import Lease, Leases, Wanted
from .stats import Counter, Distribution, Stage

log = logging.getLogger(__name__)

#: A swap waits so long for the inference in hand; a model that takes longer is not waited for.
_PAUSE_LIMIT_S = 60.0
#: An engine that is warm answers "serve" at once; one that does not in this time is not fit to serve.
_SERVE_LIMIT_S = 5.0
_STOP_LIMIT_S = 5.0
#: An engine that is to end waits so long for clients to make room for results of theirs that it holds.
_DELIVERY_LIMIT_S = 2.0
_DELIVERY_LOOK_S = 0.005


@dataclass(frozen=True)
class Served:
    """A model as one engine runs it."""

    package: Path
    version: str
    device: str
    #: What the package's sender called it, for a package that gives itself no name.
    called: str = field(default="", compare=False)


class EngineFailed(Exception):
    """An engine did not get to serve: at which stage, and the model's own error."""

    def __init__(self, stage: str, error: str, message: str) -> None:
        super().__init__(f"{stage} failed: {error}: {message}")
        self.stage = stage
        self.error = error
        self.message = message


class Engines:
    """Starts, swaps and buries engines.

    `on_lost` is told when the serving one has died, `on_ended` of every one that has, with its counts still there.
    """

    def __init__(
        self,
        config: Config,
        leases: Leases,
        request_bell: str | None,
        *,
        on_lost: Callable[[EngineProcess, int], None],
        on_ended: Callable[[EngineProcess], None],
        on_broken: Callable[[Lease, str], None],
    ) -> None:
        self._config = config
        self._leases = leases
        self._request_bell = request_bell
        self._on_lost = on_lost
        self._on_ended = on_ended
        self._on_broken = on_broken
        self._serial = 0
        self._warm: list[EngineProcess] = []
        self._watchers: dict[EngineProcess, asyncio.Task[None]] = {}
        self._totals: Tally[str] = Tally()
        self._served_by: Tally[str] = Tally()  # requests by version, of engines that have ended
        self._past_latency: dict[Stage, Distribution] = {}  # of engines that have ended
        self._standby_timer: asyncio.TimerHandle | None = None
        self.serving: EngineProcess | None = None
        self.standby: EngineProcess | None = None

    # Life

    async def start(self, served: Served, on_stage: Callable[[str], None]) -> EngineProcess:
        """An engine that has loaded and warmed `served` up and has every channel mapped, but does not serve yet.

        `on_stage` hears "loading" and "warming". Raises EngineFailed; then nothing of it is left.
        """
        self._serial += 1
        engine = EngineProcess(
            self._serial, served, lambda engine, message: self._on_message(engine, message, on_stage)
        )
        await engine.start()
        watcher = self._watchers[engine] = asyncio.create_task(self._watch(engine))
        try:
            await self._warm_up(engine)
        except BaseException:
            engine.kill()
            await asyncio.shield(watcher)
            raise
        self._warm.append(engine)
        for lease in self._leases:
            self._send_lease(engine, lease)
        return engine

    async def _warm_up(self, engine: EngineProcess) -> None:
        ready, failed = engine.expect("ready"), engine.expect("failed")
        engine.send(
            "load",
            package=str(engine.served.package),
            device=engine.served.device,
            called=engine.served.called,
            allow_code=self._config.allow_code,
            threads=self._config.threads,
            memory_bytes=self._config.engine_memory_bytes,
            version=engine.served.version,
            serial=engine.serial,
            spin_us=self._config.spin_us,
            request_bell=self._request_bell,
            trusted_transport=self._config.transport == "named",
        )
        done, _ = await asyncio.wait((ready, failed), timeout=self._config.load_s, return_when=asyncio.FIRST_COMPLETED)
        stage = engine.stage
        if not done:
            message = f"not ready after load_s = {self._config.load_s:g} s; if it needs longer, raise load_s"
            raise EngineFailed(stage, "TimeoutError", message)
        try:
            message = done.pop().result()
        except EngineEnded as ended:
            said = f"{exit_reason(ended.status)}; what it wrote is in the daemon's log"
            raise EngineFailed(stage, "the engine died", said) from ended
        if message["event"] == "failed":
            raise EngineFailed(message["stage"], message["error"], message["message"])

    async def swap(self, new: EngineProcess) -> float:
        """Let `new` serve in place of the serving engine, which stays warm; returns the pause in seconds.

        Between the two nobody takes requests; they wait in their slots. Raises EngineFailed if `new`
        died at this moment; then the old engine serves on.
        """
        old = self.serving
        began = time.monotonic()
        if old is not None:
            await self._pause(old)
        failpoint("swap.paused")
        try:
            await self._let_serve(new)
        except EngineFailed:
            if old is not None and old.alive:
                old.send("serve")  # if it has died as well, `on_lost` was told: it is what serves still
            raise
        pause_s = time.monotonic() - began
        self.serving = new
        assert new.ready is not None
        self._leases.model_wants = Wanted(
            0, request_bytes=new.ready["request_bytes"], reply_bytes=new.ready["reply_bytes"]
        )
        if old is not None and old.alive:
            self.keep_standby(old)
        return pause_s

    async def _pause(self, old: EngineProcess) -> None:
        paused = old.expect("paused")
        old.send("pause")
        self._ring()
        try:
            message = await asyncio.wait_for(paused, _PAUSE_LIMIT_S)
        except EngineEnded:
            return  # what it had taken, the next engine finds
        except asyncio.TimeoutError:
            log.error("engine %d did not finish its inference within %g s: killing it", old.pid, _PAUSE_LIMIT_S)
            await self._kill(old)
            return
        # A result that did not fit its reply slot waits in the old engine for the client to make room.
        for channel, sequence in message["held"]:
            lease = self._leases.get(channel)
            if lease is not None:
                lease.holders[sequence] = old.serial

    async def _let_serve(self, new: EngineProcess) -> None:
        serving = new.expect("serving")
        new.send("serve")
        try:
            await asyncio.wait_for(serving, _SERVE_LIMIT_S)
        except EngineEnded as ended:
            raise EngineFailed("swap", "the engine died", exit_reason(ended.status)) from ended
        except asyncio.TimeoutError:
            await self._kill(new)  # before the old one goes on: never two
            raise EngineFailed("swap", "TimeoutError", f"it did not begin within {_SERVE_LIMIT_S:g} s") from None
        if not new.alive:
            raise EngineFailed("swap", "the engine died", "as soon as it served")

    def _ring(self) -> None:
        """Wake the serving engine if it sleeps: it looks for messages when it wakes.

        Not by the requests' doorbell: a client can truncate or scribble on that semaphore, and whoever
        has it mapped dies of it. That must never be the supervisor. A signal ends the engine's wait;
        it is not sent into an inference, whose libraries may not like it.
        """
        engine = self.serving
        if engine is None or engine.ready is None or engine.stats is None:
            return
        if not engine.stats.words[Counter.CHANNEL]:
            engine.kill(WAKE_SIGNAL)

    async def _kill(self, engine: EngineProcess) -> None:
        engine.kill()
        if engine in self._watchers:
            await asyncio.wait((self._watchers[engine],))

    def keep_standby(self, engine: EngineProcess) -> None:
        """Keep an engine warm that does not serve, for an instant rollback, for a while."""
        self.drop_standby()
        self.standby = engine
        self._standby_timer = asyncio.get_running_loop().call_later(self._config.standby_s, self.drop_standby)

    def claim_standby(self, served: Served) -> EngineProcess | None:
        """The standby engine, if it runs this model; it is the caller's to let serve or to keep again."""
        engine = self.standby
        if engine is None or not engine.alive or engine.served != served:
            return None
        self._forget_standby()
        return engine

    def drop_standby(self) -> asyncio.Task[None] | None:
        """Give the standby engine's memory back; the task that does so, if there is one."""
        engine = self.standby
        self._forget_standby()
        if engine is None:
            return None
        engine.retiring = asyncio.create_task(self.discard(engine))
        return engine.retiring

    def _forget_standby(self) -> None:
        self.standby = None
        if self._standby_timer is not None:
            self._standby_timer.cancel()
            self._standby_timer = None

    async def stop_all(self) -> None:
        """End the serving engine after what is in hand, and all that are kept; requests wait for the next."""
        self.drop_standby()
        engine, self.serving = self.serving, None
        if engine is not None:
            await self._pause(engine)
            await self.discard(engine)
        retiring = [engine.retiring for engine in self._watchers if engine.retiring is not None]
        if retiring:
            await asyncio.wait(retiring)

    async def discard(self, engine: EngineProcess) -> None:
        """End an engine that does not serve, once it has delivered what it holds."""
        until = time.monotonic() + _DELIVERY_LIMIT_S
        while engine.alive and self._owes(engine) and time.monotonic() < until:
            await asyncio.sleep(_DELIVERY_LOOK_S)
        if engine in self._warm:
            self._warm.remove(engine)
        watcher = self._watchers.get(engine)
        await engine.stop(_STOP_LIMIT_S)
        if watcher is not None:
            await asyncio.wait((watcher,))

    def _owes(self, engine: EngineProcess) -> bool:
        """Whether a client has yet to make room for a result that this engine holds."""
        return any(
            serial == engine.serial and sequence not in lease.carried
            for lease in self._leases
            for sequence, serial in lease.holders.items()
        )

    async def drain(self, timeout_s: float) -> None:
        """Let the serving engine answer what clients have sent, then end it and all others."""
        engine, self.serving = self.serving, None
        if engine is not None:
            engine.send("drain")
            done, _ = await asyncio.wait((self._watchers[engine],), timeout=timeout_s)
            if not done:
                log.warning("%g s were not enough to answer what waited: stopping anyway", timeout_s)
        await self.kill()

    async def kill(self) -> None:
        """End every engine at once."""
        self._forget_standby()
        self.serving = None
        watchers = dict(self._watchers)
        for engine in watchers:
            engine.kill()
        if watchers:
            await asyncio.wait(watchers.values())

    async def _watch(self, engine: EngineProcess) -> None:
        status = await engine.wait()
        was_serving = engine is self.serving
        if engine in self._warm:
            self._warm.remove(engine)
        if engine is self.standby:
            self._forget_standby()
        if was_serving:
            self.serving = None
        assert engine.stats is not None
        counters = engine.stats.counters()
        self._keep_counts(engine)
        self._disown(engine)
        lease = self._leases.get(counters["channel"] - 1)
        if status == -signal.SIGBUS and lease is not None:
            # SIGBUS is what a truncated segment does to whoever reads it.
            self._on_broken(lease, "its shared memory was truncated")
        del self._watchers[engine]
        if was_serving:
            self._on_lost(engine, status)
        self._on_ended(engine)
        engine.close()

    def _on_message(self, engine: EngineProcess, message: dict[str, Any], on_stage: Callable[[str], None]) -> None:
        match message["event"]:
            case "loading" | "warming":
                engine.stage = "warm up" if message["event"] == "warming" else "load"
                on_stage(message["event"])
            case "broken":
                lease = self._leases.get(message["channel"])
                if lease is not None and lease.lane.identity.generation == message["generation"]:
                    self._on_broken(lease, message["reason"])
            case "ready" | "serving" | "paused" | "failed":
                pass  # somebody waits for these with expect()
            case other:
                log.warning("the engine said %.64r, which this supervisor does not know", other)

    # Channels

    def attach(self, lease: Lease) -> None:
        """Tell every warm engine of a new lease, or of a lease's new generation."""
        for engine in self._warm:
            self._send_lease(engine, lease)

    def detach(self, channel: int) -> None:
        """The client of `channel` is gone."""
        for engine in self._warm:
            engine.send("detach", channel=channel)

    def _send_lease(self, engine: EngineProcess, lease: Lease) -> None:
        # Results that wait for room are delivered by the engine that holds them; where that is gone, or none is
        # known, it is for whoever serves to deliver them or to say that they are lost.
        others = {warm.serial for warm in self._warm if warm is not engine}
        carried = [sequence for sequence in lease.carried if lease.holders.get(sequence) not in others]
        fds = lease.sealed.engine_ends() if lease.sealed is not None else ()
        engine.send("attach", fds=fds, lane=lease.lane.to_json(), trusted=lease.trusted, carried=carried)

    def _disown(self, engine: EngineProcess) -> None:
        """An engine has ended: what it held and clients have made room for is lost, unless it was delivered."""
        for lease in self._leases:
            held = [sequence for sequence, serial in lease.holders.items() if serial == engine.serial]
            for sequence in held:
                del lease.holders[sequence]
            carried = [sequence for sequence in held if sequence in lease.carried]
            if carried:
                identity = lease.lane.identity
                for warm in self._warm:
                    warm.send("lost", channel=identity.channel, generation=identity.generation, carried=carried)

    # Seeing

    @property
    def model(self) -> dict[str, Any] | None:
        """What the serving engine said of its model; None without one."""
        if self.serving is None or self.serving.ready is None:
            return None
        return {key: value for key, value in self.serving.ready.items() if key != "event"}

    def _keep_counts(self, engine: EngineProcess) -> None:
        assert engine.stats is not None
        counters = engine.stats.counters()
        self._totals.update(counters)
        self._served_by[engine.served.version] += counters["served"]
        for stage in Stage:
            latency, past = engine.stats.distribution(stage), self._past_latency.get(stage)
            self._past_latency[stage] = latency if past is None else past + latency

    def served_by_version(self, version: str) -> int:
        """Requests that this version answered in this run of the daemon."""
        living = (engine for engine in self._watchers if engine.served.version == version and engine.stats is not None)
        return self._served_by[version] + sum(engine.stats.counters()["served"] for engine in living if engine.stats)

    def counters(self) -> Tally[str]:
        """What all engines of this run counted."""
        total = self._totals.copy()
        for engine in self._watchers:
            if engine.stats is not None:
                total.update(engine.stats.counters())
        for word in ("heartbeat_ns", "channel"):
            total.pop(word, None)
        return total

    def latency(self, stage: Stage = Stage.TOTAL) -> Distribution | None:
        """Durations inside the service, over all engines of this run."""
        total = self._past_latency.get(stage)
        for engine in self._watchers:
            if engine.stats is not None:
                now = engine.stats.distribution(stage)
                total = now if total is None else total + now
        return total

    def channel_counts(self, channel: int) -> tuple[int, int, int]:
        """(served, errors, monotonic ns of the last) of a channel in the serving engine."""
        if self.serving is None or self.serving.stats is None:
            return 0, 0, 0
        return self.serving.stats.channel(channel)
