"""Owns the service: its names, its clients' leases, its engine, and what state it is in."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import time
from collections import Counter as Tally
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmserve.directories import check_service_name
from shmserve.doorbell import create_doorbell, unlink_doorbell

from .config import Config
from .engine_process import EngineProcess, exit_reason
from .leases import Lease, Leases, Wanted
from .names import Names
from .stats import Counter, Distribution, Stage

log = logging.getLogger(__name__)

#: A crash this long after the last one begins a new series: the first restart is at once again.
_QUIET_S = 10.0
_BACKOFF_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)


class AlreadyRunning(Exception):
    """Another daemon serves this name in this directory."""


class ModelFailed(Exception):
    """The model could not be loaded or warmed up at the start."""


class ServiceLock:
    """The service's directory, held by one daemon at a time through a lock that its death releases."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor: int | None = None

    def acquire(self, *, group: bool) -> None:
        """Make the directory and lock it; raises AlreadyRunning naming the other daemon, or OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o750 if group else 0o700)
        found = self._directory.stat()
        if found.st_uid not in (os.getuid(), 0):
            raise PermissionError(f"{self._directory} belongs to uid {found.st_uid}: choose another --runtime-dir")
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise AlreadyRunning(
                f"service {self._directory.name} in {self._directory.parent} is already served by pid {holder or '?'}: "
                "stop that daemon, or choose another --name or --runtime-dir"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """The file stays: removing it would let two daemons hold two locks of one name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Supervisor:
    """One run of the daemon. `open`, then `run` until `stop`, then `close`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.directory = config.runtime_dir / check_service_name(config.name)
        self.epoch = secrets.randbits(62)
        self.started_ns = time.monotonic_ns()
        self.state = "starting"
        self.error: str | None = None
        self.engine: EngineProcess | None = None
        self.restarts = 0
        self.totals: Tally[str] = Tally()
        self._past_latency: Distribution | None = None
        self._lock = ServiceLock(self.directory)
        self._names = Names(self.directory)
        self._request_bell = self._names.fresh()
        self.leases = Leases(config, self._names, self.epoch, self._request_bell)
        self._serial = 0
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self.on_evict: Callable[[Lease, str], None] = lambda lease, reason: None

    # Life

    def open(self) -> None:
        """Take the service's name; raises AlreadyRunning or OSError."""
        self._lock.acquire(group=self.config.group_clients)
        swept = self._names.sweep()
        if swept:
            log.info("removed %d shared-memory objects that an earlier daemon left", swept)
        create_doorbell(self._request_bell, 0o660 if self.config.group_clients else 0o600)

    def close(self) -> None:
        """Remove every name; may be called twice and on a half-opened supervisor."""
        for lease in self.leases:
            self.leases.release(lease.channel)
        unlink_doorbell(self._request_bell)
        self._lock.release()

    def stop(self) -> None:
        """Begin to drain; `run` returns when that is done."""
        self._stopping.set()

    async def run(self) -> None:
        """Keep an engine serving until `stop`; raises ModelFailed if the model cannot be served at all."""
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            crashes, last_crash = 0, time.monotonic()
            while not self._stopping.is_set():
                engine = await self._start_engine()
                ended = asyncio.create_task(engine.wait())
                await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
                if self._stopping.is_set():
                    await self._drain(engine)
                    return
                status = ended.result()
                was_ready = engine.ready is not None
                self._bury(engine, status)
                if not was_ready and self.restarts == 0:
                    failure = engine.failure or {"stage": "load", "error": "the engine died", "message": exit_reason(status)}
                    self.error = f"{failure['stage']} failed: {failure['error']}: {failure['message']}"
                    self._enter("failed")
                    raise ModelFailed(self.error)
                self.restarts += 1
                now = time.monotonic()
                crashes = crashes + 1 if now - last_crash < _QUIET_S else 0
                last_crash = now
                delay_s = _BACKOFF_S[min(crashes, len(_BACKOFF_S) - 1)]
                log.error("engine %s; another starts in %g s, waiting requests stay", exit_reason(status), delay_s)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), delay_s)
        finally:
            stopping.cancel()
            if self.engine is not None:
                self.engine.kill()
                await self.engine.wait()
                self.engine.close()
                self.engine = None

    async def _start_engine(self) -> EngineProcess:
        self._serial += 1
        engine = EngineProcess(self._serial, self._on_engine_message)
        self.engine = engine
        self._enter("loading")
        await engine.start()
        engine.send(
            "load",
            package=str(self.config.model_path),
            device=self.config.device,
            serial=self._serial,
            spin_us=self.config.spin_us,
            request_bell=self._request_bell,
            trusted_transport=self.config.transport == "named",
        )
        return engine

    def _on_engine_message(self, engine: EngineProcess, message: dict[str, Any]) -> None:
        match message["event"]:
            case "warming":
                self._enter("warming")
            case "ready":
                log.info(
                    "model %s version %s is ready on %s%s",
                    message["name"],
                    message["version"],
                    message["device"],
                    f", {message['infer_ms']:.2f} ms an inference" if message["infer_ms"] is not None else "",
                )
                self.leases.model_wants = Wanted(
                    0, request_bytes=message["request_bytes"], reply_bytes=message["reply_bytes"]
                )
                for lease in self.leases:
                    self._hand_over(engine, lease)
                engine.send("serve")
            case "serving":
                self.error = None
                self._enter("ready")
            case "broken":
                lease = self.leases.get(message["channel"])
                if lease is not None and lease.lane.identity.generation == message["generation"]:
                    self.on_evict(lease, message["reason"])
            case "paused" | "loading" | "failed":
                pass
            case other:
                log.warning("the engine said %.64r, which this supervisor does not know", other)

    def _hand_over(self, engine: EngineProcess, lease: Lease) -> None:
        engine.send(
            "attach", lane=lease.lane.to_json(), trusted=lease.trusted, carried=list(lease.carried)
        )

    def _bury(self, engine: EngineProcess, status: int) -> None:
        """Keep what the dead engine counted, and send away the client whose memory killed it."""
        assert engine.stats is not None
        counters = engine.stats.counters()
        self._keep(engine)
        channel = counters["channel"] - 1
        lease = self.leases.get(channel) if channel >= 0 else None
        if status == -signal.SIGBUS and lease is not None:
            # SIGBUS is what a truncated segment does to whoever reads it.
            self.on_evict(lease, "its shared memory was truncated")
        engine.close()
        self.engine = None

    def _keep(self, engine: EngineProcess) -> None:
        assert engine.stats is not None
        self.totals.update(
            {name: count for name, count in engine.stats.counters().items() if name not in ("heartbeat_ns", "channel")}
        )
        latency = engine.stats.distribution(Stage.TOTAL)
        self._past_latency = latency if self._past_latency is None else self._past_latency + latency

    async def _drain(self, engine: EngineProcess) -> None:
        self._enter("draining")
        if engine.ready is None:
            engine.kill()  # it has nothing of anybody's under way
        engine.send("drain")
        try:
            await asyncio.wait_for(engine.wait(), self.config.drain_s)
        except asyncio.TimeoutError:
            log.warning("%g s were not enough to answer what waited: stopping anyway", self.config.drain_s)
            engine.kill()
            await engine.wait()
        self._keep(engine)
        engine.close()
        self.engine = None

    def _enter(self, state: str) -> None:
        if state != self.state and self.state != "draining":
            log.info("state %s", state)
            self.state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_change(self) -> None:
        """Until the state changes."""
        await self._changed.wait()

    # Clients

    def attach(self, lease: Lease) -> None:
        """Tell the serving engine of a new lease, or of a lease's new generation."""
        if self.engine is not None and self.engine.ready is not None:
            self._hand_over(self.engine, lease)

    def detach(self, channel: int) -> None:
        """The client of `channel` is gone: remove its names, tell the engine."""
        if self.leases.release(channel) is not None and self.engine is not None and self.engine.ready is not None:
            self.engine.send("detach", channel=channel)

    # Seeing

    def model(self) -> dict[str, Any] | None:
        """What the serving engine said of its model; None without one."""
        if self.engine is None or self.engine.ready is None:
            return None
        return {key: value for key, value in self.engine.ready.items() if key != "event"}

    def counters(self) -> Tally[str]:
        """What all engines of this run counted."""
        total = self.totals.copy()
        if self.engine is not None and self.engine.stats is not None:
            total.update(self.engine.stats.counters())
        for word in ("heartbeat_ns", "channel"):
            total.pop(word, None)
        return total

    def latency(self, stage: Stage = Stage.TOTAL) -> Distribution | None:
        """Durations inside the engine; TOTAL over all engines of this run, another stage over the present one."""
        now = self.engine.stats.distribution(stage) if self.engine is not None and self.engine.stats else None
        if stage is not Stage.TOTAL or self._past_latency is None:
            return now
        return self._past_latency if now is None else self._past_latency + now

    def channel_counts(self, channel: int) -> tuple[int, int, int]:
        """(served, errors, monotonic ns of the last) of a channel in the present engine."""
        if self.engine is None or self.engine.stats is None:
            return 0, 0, 0
        return self.engine.stats.channel(channel)

    def heartbeat_age_s(self) -> float | None:
        """Seconds since the engine's loop went round; None without a serving engine."""
        if self.engine is None or self.engine.stats is None or self.engine.ready is None:
            return None
        return max(0.0, (time.monotonic_ns() - self.engine.stats.words[Counter.HEARTBEAT_NS]) / 1e9)
