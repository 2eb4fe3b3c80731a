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
from .engine_process import EngineEnded, EngineProcess, exit_reason
from .leases import Lease, Leases, Wanted
from .stats import Distribution, Stage

log = logging.getLogger(__name__)

#: A swap waits so long for the inference in hand; a model that takes longer is not waited for.
_PAUSE_LIMIT_S = 60.0
_STOP_LIMIT_S = 5.0


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
    """Starts, swaps and buries engines; `on_lost` is told when the serving one has died."""

    def __init__(
        self,
        config: Config,
        leases: Leases,
        request_bell: str,
        *,
        on_lost: Callable[[EngineProcess, int], None],
        on_broken: Callable[[Lease, str], None],
    ) -> None:
        self._config = config
        self._leases = leases
        self._request_bell = request_bell
        self._on_lost = on_lost
        self._on_broken = on_broken
        self._serial = 0
        self._warm: list[EngineProcess] = []
        self._watchers: dict[EngineProcess, asyncio.Task[None]] = {}
        self._swapping = False
        self._totals: Tally[str] = Tally()
        self._served_by: Tally[str] = Tally()  # requests by version, of engines that have ended
        self._past_latency: Distribution | None = None
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
        self._watchers[engine] = asyncio.create_task(self._watch(engine))
        try:
            await self._warm_up(engine)
        except BaseException:
            engine.kill()
            await asyncio.shield(self._watchers[engine])
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
            serial=engine.serial,
            spin_us=self._config.spin_us,
            request_bell=self._request_bell,
            trusted_transport=self._config.transport == "named",
        )
        done, _ = await asyncio.wait((ready, failed), timeout=self._config.load_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise EngineFailed("load", "TimeoutError", f"not ready after load_s = {self._config.load_s:g} s")
        try:
            message = done.pop().result()
        except EngineEnded as ended:
            raise EngineFailed("load", "the engine died", exit_reason(ended.status)) from ended
        if message["event"] == "failed":
            raise EngineFailed(message["stage"], message["error"], message["message"])
        self._leases.model_wants = Wanted(0, request_bytes=message["request_bytes"], reply_bytes=message["reply_bytes"])

    async def swap(self, new: EngineProcess) -> float:
        """Let `new` serve in place of the serving engine, which stays warm; returns the pause in seconds.

        Between the two nobody takes requests; they wait in their slots. Raises EngineFailed if `new`
        died at this moment; then the old engine serves on.
        """
        old = self.serving
        self._swapping = True
        try:
            began = time.monotonic()
            if old is not None:
                await self._pause(old)
            self.serving = new
            try:
                serving = new.expect("serving")
                new.send("serve")
                await serving
            except EngineEnded as ended:
                self.serving = old if old is not None and old.alive else None
                if self.serving is not None:
                    self.serving.send("serve")
                raise EngineFailed("swap", "the engine died", exit_reason(ended.status)) from ended
            pause_s = time.monotonic() - began
        finally:
            self._swapping = False
        if old is not None and old.alive:
            self._keep_standby(old)
        return pause_s

    async def _pause(self, old: EngineProcess) -> None:
        paused = old.expect("paused")
        old.send("pause")
        try:
            message = await asyncio.wait_for(paused, _PAUSE_LIMIT_S)
        except EngineEnded:
            return  # what it had taken, the next engine finds
        except asyncio.TimeoutError:
            log.error("engine %d did not finish its inference within %g s: killing it", old.pid, _PAUSE_LIMIT_S)
            old.kill()
            return
        # A result that did not fit its reply slot waits in the old engine for the client to make room.
        for channel, _sequence in message["held"]:
            lease = self._leases.get(channel)
            if lease is not None:
                lease.holder = old.serial

    def _keep_standby(self, engine: EngineProcess) -> None:
        """Keep the engine warm for an instant rollback, for a while."""
        before, self.standby = self.standby, engine
        if before is not None and before is not self.serving and before is not engine:
            self._retire(before)
        if self._standby_timer is not None:
            self._standby_timer.cancel()
        self._standby_timer = asyncio.get_running_loop().call_later(self._config.standby_s, self.drop_standby)

    def drop_standby(self) -> None:
        """Give the standby engine's memory back."""
        if self._standby_timer is not None:
            self._standby_timer.cancel()
            self._standby_timer = None
        engine, self.standby = self.standby, None
        if engine is not None and engine is not self.serving:
            self._retire(engine)

    def _retire(self, engine: EngineProcess) -> None:
        if engine in self._warm:
            self._warm.remove(engine)
        engine.retiring = asyncio.create_task(engine.stop(_STOP_LIMIT_S))

    async def stop_serving(self) -> None:
        """Stop the serving engine after what is in hand (an update in place); requests wait for the next."""
        engine, self.serving = self.serving, None
        if engine is not None:
            await self._pause(engine)
            await engine.stop(_STOP_LIMIT_S)
            await asyncio.shield(self._watchers[engine])

    async def discard(self, engine: EngineProcess) -> None:
        """End an engine that will not serve."""
        if engine in self._warm:
            self._warm.remove(engine)
        await engine.stop(_STOP_LIMIT_S)

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
        if self._standby_timer is not None:
            self._standby_timer.cancel()
        self.serving = self.standby = None
        watchers = dict(self._watchers)
        for engine in watchers:
            engine.kill()
        if watchers:
            await asyncio.wait(watchers.values())

    async def _watch(self, engine: EngineProcess) -> None:
        status = await engine.wait()
        was_serving = engine is self.serving and not self._swapping
        if engine in self._warm:
            self._warm.remove(engine)
        if engine is self.standby:
            self.standby = None
        if engine is self.serving and not self._swapping:
            self.serving = None
        assert engine.stats is not None
        counters = engine.stats.counters()
        self._keep_counts(engine)
        lease = self._leases.get(counters["channel"] - 1)
        if status == -signal.SIGBUS and lease is not None:
            # SIGBUS is what a truncated segment does to whoever reads it.
            self._on_broken(lease, "its shared memory was truncated")
        del self._watchers[engine]
        engine.close()
        if was_serving:
            self._on_lost(engine, status)

    def _on_message(self, engine: EngineProcess, message: dict[str, Any], on_stage: Callable[[str], None]) -> None:
        match message["event"]:
            case "loading" | "warming":
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
        # Held results are delivered by the engine that has them; if that is gone, whoever serves says so.
        holder_lives = any(warm.serial == lease.holder for warm in self._warm)
        owes = engine.serial == lease.holder if holder_lives else True
        engine.send(
            "attach",
            lane=lease.lane.to_json(),
            trusted=lease.trusted,
            carried=list(lease.carried) if owes else [],
        )

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
        latency = engine.stats.distribution(Stage.TOTAL)
        self._past_latency = latency if self._past_latency is None else self._past_latency + latency

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
        """Durations inside the service: TOTAL over all engines of this run, another stage over the serving one."""
        if stage is not Stage.TOTAL:
            return self.serving.stats.distribution(stage) if self.serving and self.serving.stats else None
        total = self._past_latency
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
