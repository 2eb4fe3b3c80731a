"""Spare engine: a process that has imported torch and waits for a model, for the next engine that is needed.

Importing torch is nearly all of an engine's start. A crash, an update or a rollback uses the spare engine and needs to load
the model only. Another one is started afterwards, with low priority and only while a model serves. It is ended where memory
is short, and never used once another release of shmserve or torch is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..config.config import Config
from ..failpoints import failpoint
from ..host.cgroup_memory import group_without_headroom
from ..host.memory import available_bytes, private_bytes, stalled_percent
from ..ipc.messages import Failed, Preload, Preloaded
from ..ipc.release import Installation
from ..ipc.stats import Counter
from .engine_process import EngineProcess, exit_reason

log = logging.getLogger(__name__)

_MIB = 1 << 20
#: A model serves for this long before a spare engine is started beside it.
_CALM_S = 1.0
_CHECK_S = 5.0
#: Memory that must be available to start one, and to keep one.
START_BYTES, KEEP_BYTES = 512 * _MIB, 192 * _MIB
#: Share of time in percent that processes wait for memory: none is started above the first, none is kept above the second.
START_STALLED, KEEP_STALLED = 5.0, 20.0
#: After it was ended for want of memory.
_MEMORY_PAUSE_S = 60.0
#: Pauses after it died by itself, unused.
_PAUSES_S = (1.0, 10.0, 60.0)
_STEADY_S = 60.0


class SpareState(Enum):
    """State of the spare engine; the values are the words of status."""

    OFF = "off"  # spare_engine = false
    WAITING = "waiting"  # to be started once a model has served for a moment
    STARTING = "starting"
    READY = "ready"
    NO_MEMORY = "no memory"
    FAILED = "failed"


@dataclass(frozen=True)
class SpareStatus:
    """The spare engine at one moment."""

    state: SpareState
    pid: int | None
    #: Memory that it takes from the others.
    memory_bytes: int | None
    #: Why there is none, in a sentence.
    reason: str | None
    #: Engines that were started from one.
    uses: int


class SpareEngine:
    """Holds at most one process. `run` until cancelled, then `kill`; `take` it for the next engine."""

    def __init__(self, config: Config, calm_s: Callable[[], float]) -> None:
        """`calm_s` returns for how many seconds a model has served with nothing else under way; 0 if that is not so."""
        self._config = config
        self._calm_s = calm_s
        self._engine: EngineProcess | None = None
        self._follower: asyncio.Task[None] | None = None
        #: Also those of processes that are being ended.
        self._followers: set[asyncio.Task[None]] = set()
        self._state = SpareState.WAITING
        self._reason: str | None = None
        self._memory_bytes: int | None = None
        self._installation = Installation.present()
        self._started_s = 0.0
        self._not_before_s = 0.0
        self._deaths = 0
        self._uses = 0
        self._news = asyncio.Event()
        self._reported: str | None = None

    @property
    def status(self) -> SpareStatus:
        engine = self._engine
        if not self._config.spare_engine:
            return SpareStatus(SpareState.OFF, None, None, None, self._uses)
        pid = engine.pid if engine is not None and engine.alive else None
        return SpareStatus(self._state, pid, self._memory_bytes, self._reason, self._uses)

    @property
    def ready(self) -> bool:
        """Whether an engine can be started without the import of torch."""
        return self._state is SpareState.READY and self._engine is not None and self._engine.alive

    async def run(self) -> None:
        """Keep one ready, as far as the memory allows."""
        while True:
            await self._look()
            news = asyncio.create_task(self._news.wait())
            try:
                # Not wait_for(), which loses a cancellation that comes together with the event (before Python 3.12).
                await asyncio.wait((news,), timeout=_CALM_S if self._state is SpareState.WAITING else _CHECK_S)
            finally:
                news.cancel()
            self._news.clear()

    def take(self) -> EngineProcess | None:
        """Return the process for the engine that is needed now, which may still be importing; None without a usable one."""
        engine = self._engine
        if engine is None or not engine.alive:
            return None
        if self._installation != Installation.present():
            self._end(SpareState.WAITING, "another release was installed")
            return None
        self._release()
        self._uses += 1
        self._deaths = 0
        self._enter(SpareState.WAITING)
        failpoint("spare.taken")
        return engine

    def engine_started(self) -> None:
        """Note that another engine could be started: what ended the spare one at its start may be mended."""
        if self._state is SpareState.FAILED:
            self._enter(SpareState.WAITING)

    async def kill(self) -> None:
        """End the process and wait for its end."""
        if self._engine is not None:
            self._end(SpareState.WAITING)
        if self._followers:
            await asyncio.wait(self._followers)

    # Keeping one

    async def _look(self) -> None:
        engine, now_s = self._engine, time.monotonic()
        if not self._config.spare_engine:
            if engine is not None:
                self._end(SpareState.OFF)
            return
        if engine is not None:
            limit_s = self._config.heartbeat_timeout_s
            if self._installation != Installation.present():
                self._end(SpareState.WAITING, "another release was installed")
            elif (shortage := memory_shortage(KEEP_BYTES, KEEP_STALLED)) is not None:
                self._not_before_s = now_s + _MEMORY_PAUSE_S
                self._end(SpareState.NO_MEMORY, shortage)
            elif limit_s and self._is_frozen(engine, limit_s):
                self._end(SpareState.WAITING, f"it has not moved for heartbeat_timeout_s = {limit_s:g} s")
            return
        if self._state is SpareState.FAILED or now_s < self._not_before_s or self._calm_s() < _CALM_S:
            return
        if (shortage := memory_shortage(START_BYTES, START_STALLED)) is not None:
            self._enter(SpareState.NO_MEMORY, shortage)
            return
        await self._start()

    async def _start(self) -> None:
        engine = EngineProcess()
        self._installation = Installation.present()
        try:
            await engine.start()
        except OSError as error:
            self._enter(SpareState.FAILED, f"its process cannot be started: {error.strerror}")
            return
        engine.in_background = True
        self._engine, self._started_s = engine, time.monotonic()
        self._enter(SpareState.STARTING)
        preloaded, failed = engine.expect(Preloaded), engine.expect(Failed)
        engine.send(Preload(self._config.preload))
        follower = self._follower = asyncio.create_task(self._follow(engine, preloaded, failed))
        self._followers.add(follower)
        follower.add_done_callback(self._followers.discard)
        failpoint("spare.started")

    async def _follow(
        self, engine: EngineProcess, preloaded: asyncio.Future[Preloaded], failed: asyncio.Future[Failed]
    ) -> None:
        """Follow the process until it has ended, or is taken, which cancels this."""
        ended = asyncio.create_task(engine.wait())
        try:
            await asyncio.wait(
                (preloaded, failed, ended), timeout=self._config.load_s, return_when=asyncio.FIRST_COMPLETED
            )
            if _has_result(preloaded):
                self._memory_bytes = await asyncio.to_thread(private_bytes, engine.pid)
                if self._engine is engine:
                    self._enter(SpareState.READY)
                failpoint("spare.ready")
            elif not (failed.done() or ended.done()) and self._engine is engine:
                self._end(SpareState.FAILED, f"not ready after load_s = {self._config.load_s:g} s")
            status = await ended
        except asyncio.CancelledError:
            ended.cancel()
            return
        if self._engine is engine:  # otherwise it was ended on purpose
            self._died(engine, status, failed.result() if _has_result(failed) else None)
        engine.close()

    def _died(self, engine: EngineProcess, status: int, message: Failed | None) -> None:
        is_ready = self._state is SpareState.READY
        self._engine = self._follower = None
        if message is not None:
            self._enter(SpareState.FAILED, message.message)
        elif not is_ready:
            self._enter(SpareState.FAILED, f"it ended before it was ready: {exit_reason(status)}")
        else:
            now_s = time.monotonic()
            self._deaths = 0 if now_s - self._started_s > _STEADY_S else self._deaths
            self._not_before_s = now_s + _PAUSES_S[min(self._deaths, len(_PAUSES_S) - 1)]
            self._deaths += 1
            log.warning("the spare engine %d ended (%s); another one is started", engine.pid, exit_reason(status))
            self._enter(SpareState.WAITING)

    def _end(self, state: SpareState, reason: str | None = None) -> None:
        """End the process; its follower sees to the rest."""
        engine = self._engine
        assert engine is not None
        self._engine = self._follower = None
        engine.kill()
        if state is SpareState.WAITING and reason is not None:
            log.warning("the spare engine %d is ended: %s", engine.pid, reason)
        self._enter(state, reason)

    def _release(self) -> None:
        """Let go of the process, which is no longer the spare one."""
        self._engine = None
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()

    def _is_frozen(self, engine: EngineProcess, limit_s: float) -> bool:
        if self._state is not SpareState.READY or engine.stats is None:
            return False
        return time.monotonic_ns() - engine.stats.words[Counter.HEARTBEAT_NS] > limit_s * 1e9

    def _enter(self, state: SpareState, reason: str | None = None) -> None:
        """Enter a state; each reason for which there is none is logged once, until one is ready again."""
        if state is not SpareState.READY:
            self._memory_bytes = None
        changed, self._state, self._reason = state is not self._state, state, reason
        if changed:
            self._news.set()
        if state is SpareState.READY:
            self._reported = None
            size = f", {self._memory_bytes // _MIB} MiB" if self._memory_bytes is not None else ""
            log.info("a spare engine is ready%s", size)
        elif state is SpareState.NO_MEMORY and reason != self._reported:
            log.info("no spare engine is kept: %s", reason)
            self._reported = reason
        elif state is SpareState.FAILED and reason != self._reported:
            log.error("no spare engine can be kept, so a restart of the engine takes longer: %s", reason)
            self._reported = reason


def _has_result(future: asyncio.Future[Any]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def memory_shortage(needed_bytes: int, most_stalled: float) -> str | None:
    """Return why a process of this size would be a burden to the machine or to the service's control group, or None."""
    with contextlib.suppress(OSError):
        available = available_bytes(Path("/proc/meminfo").read_text())
        if available is not None and available < needed_bytes:
            return f"the machine has less than {needed_bytes // _MIB} MiB of memory available"
    if group_without_headroom(needed_bytes) is not None:
        return f"the service's control group has less than {needed_bytes // _MIB} MiB of memory left (MemoryMax)"
    with contextlib.suppress(OSError):  # a kernel without pressure stall information
        if stalled_percent(Path("/proc/pressure/memory").read_text()) > most_stalled:
            return f"processes wait for memory more than {most_stalled:g} % of the time (/proc/pressure/memory)"
    return None
