"""Replaces the model under running robots: update, rollback, and what happens if the new one is no good."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shmserve.contract import contract_differences

from .engine_process import EngineProcess
from .engines import EngineFailed, Served
from .failpoints import failpoint
from .store.receive import Progress as Received
from .store.stored_version import StoredVersion
from .store.versions import Store
from .supervisor import Supervisor

log = logging.getLogger(__name__)

#: How often a model on probation is looked at.
_PROBATION_LOOK_S = 0.02
#: Failures that a model on probation may have before their share counts.
_PROBATION_LEAST = 5

Progress = Callable[[str, dict[str, Any]], None]


class ChangeRefused(Exception):
    """The model stays as it is: `reason` is a word for programs, the text says why and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Wish:
    """How an update is to be done."""

    device: str | None = None
    in_place: bool = False
    allow_contract_change: bool = False
    note: str = ""


class ModelChanges:
    """One change at a time; a second one meanwhile is refused as busy."""

    def __init__(self, supervisor: Supervisor, store: Store) -> None:
        self._supervisor = supervisor
        self._store = store
        self._busy = False
        self._probation: _Probation | None = None
        #: The last change that was taken back by itself, for people.
        self.taken_back: str | None = None
        self._committing: asyncio.Task[None] | None = None
        supervisor.on_crash = self._crashed

    async def update(self, fd: int, name: str, uid: int, wish: Wish, progress: Progress) -> dict[str, Any]:
        """Serve the package behind `fd`, called `name`, instead; the old model serves until the new one is warm.

        Raises ChangeRefused, ModelPackageError or EngineFailed; then the old model serves on.
        """
        with self._alone():

            def receiving(received: Received) -> None:
                progress("receive", {"bytes": received.read_bytes, "of": received.total_bytes})

            progress("receive", {})
            stored = await self._store.add(fd, name, uid=uid, note=wish.note, progress=receiving)
            failpoint("update.received")
            progress("check", {"version": stored.version})
            await self._store.check(stored)
            device = wish.device or self._device()
            return await self._change(stored, device, wish, progress)

    async def rollback(self, version: str | None, progress: Progress) -> dict[str, Any]:
        """Serve an earlier version again: at once while its engine is kept warm. Raises as `update`."""
        with self._alone():
            if version is None:
                target = self._store.previous()
                if target is None:
                    raise ChangeRefused("no_previous", "there is no earlier version to go back to")
            else:
                target = self._store.resolve(version)
            await self._store.check(target)
            wish = Wish(allow_contract_change=True)
            return await self._change(target, self._device(), wish, progress)

    def _alone(self) -> _Alone:
        if self._busy:
            raise ChangeRefused("busy", "another update or rollback is under way: wait for it to end")
        if self._supervisor.stopping:
            raise ChangeRefused("stopping", "the daemon is stopping")
        return _Alone(self)

    def _device(self) -> str:
        served = self._supervisor.served
        return served.device if served is not None else self._supervisor.config.device

    async def _change(self, stored: StoredVersion, device: str, wish: Wish, progress: Progress) -> dict[str, Any]:
        supervisor, engines = self._supervisor, self._supervisor.engines
        served = Served(stored.path, stored.version, device, stored.source)
        if engines.serving is not None and engines.serving.served == served:
            return {"version": stored.version, "changed": False, "pause_ms": 0.0}
        self._end_probation()
        async with supervisor.changing:
            before = supervisor.state
            if before == "ready":
                supervisor.enter("updating")
            try:
                if wish.in_place:
                    result = await self._in_place(served, progress)
                else:
                    result = await self._beside(served, wish, progress)
            finally:
                if supervisor.state == "updating":
                    supervisor.enter("ready")
        return result

    async def _beside(self, served: Served, wish: Wish, progress: Progress) -> dict[str, Any]:
        engines = self._supervisor.engines
        engine = engines.standby if engines.standby is not None and engines.standby.served == served else None
        if engine is None:
            progress("start", {})
            failpoint("update.before_start")
            engine = await engines.start(
                served, lambda stage: progress("warm up" if stage == "warming" else "load", {})
            )
        try:
            failpoint("update.warm")
            self._check_contract(engine, wish)
        except BaseException:
            if engine is not engines.standby:
                await engines.discard(engine)
            raise
        progress("swap", {})
        # Whoever asked may go away now: the swap and its record belong together.
        return await asyncio.shield(asyncio.create_task(self._swap(engine)))

    async def _in_place(self, served: Served, progress: Progress) -> dict[str, Any]:
        """The old engine goes first, for a model that does not fit twice; if the new one fails it comes back."""
        engines, supervisor = self._supervisor.engines, self._supervisor
        old = supervisor.served
        engines.drop_standby()
        progress("stop", {})
        began = time.monotonic()
        await engines.stop_serving()
        failpoint("update.stopped_old")
        try:
            engine = await engines.start(
                served, lambda stage: progress("warm up" if stage == "warming" else "load", {})
            )
        except BaseException:
            assert old is not None
            log.warning("the new model cannot serve: the old one is started again")
            engine = await asyncio.shield(asyncio.create_task(engines.start(old, lambda stage: None)))
            await engines.swap(engine)
            raise
        result = await asyncio.shield(asyncio.create_task(self._swap(engine)))
        return {**result, "pause_ms": round((time.monotonic() - began) * 1e3, 3)}

    async def _swap(self, engine: EngineProcess) -> dict[str, Any]:
        supervisor = self._supervisor
        before = supervisor.served
        failpoint("update.before_swap")
        pause_s = await supervisor.engines.swap(engine)
        failpoint("update.swapped")
        supervisor.served = engine.served
        supervisor.now_serving(engine)
        await asyncio.to_thread(self._commit, engine.served)
        failpoint("update.committed")
        if before is not None and before != engine.served:
            self._probation = _Probation(engine, before, asyncio.create_task(self._watch(engine, before)))
        return {
            "version": engine.served.version,
            "changed": True,
            "pause_ms": round(pause_s * 1e3, 3),
        }

    def _commit(self, served: Served) -> None:
        """From now on a restart serves this one."""
        stored = self._store.resolve(served.version)
        self._store.make_current(stored)
        self._store.record(stored, device=served.device)

    def _check_contract(self, engine: EngineProcess, wish: Wish) -> None:
        serving = self._supervisor.engines.serving
        if wish.allow_contract_change or serving is None or serving.ready is None or engine.ready is None:
            return
        differences = contract_differences(serving.ready["contract"], engine.ready["contract"])
        if differences:
            listed = "; ".join(differences)
            raise ChangeRefused(
                "contract",
                f"the new model gives or takes something else than the one that serves: {listed}. "
                "If the robots are ready for that: --allow-contract-change",
            )

    # Probation

    async def _watch(self, engine: EngineProcess, before: Served) -> None:
        """Look at a new model's first requests; go back if too many fail."""
        config = self._supervisor.config
        while True:
            await asyncio.sleep(_PROBATION_LOOK_S)
            if engine.stats is None:
                return  # it died; `_crashed` has seen to it
            counters = engine.stats.counters()
            failed = counters["failed"]
            total = failed + counters["served"]
            if failed >= _PROBATION_LEAST and failed > total * config.probation_failures:
                await self._take_back(engine, before, f"{failed} of its first {total} requests failed")
                return
            if total >= config.probation_requests:
                return

    def _crashed(self, engine: EngineProcess) -> None:
        """The serving engine died: on probation, the model before is what is started in its place."""
        probation, self._probation = self._probation, None
        if probation is None or probation.engine is not engine:
            return
        probation.watch.cancel()
        if engine.stats is not None and self._passed(engine):
            return
        before = probation.before
        self._note_taken_back(engine.served, before.version, "its engine died on probation")
        self._supervisor.served = before
        # Not awaited, so that the swap does not wait for the disk; kept, so that it is not collected.
        self._committing = asyncio.create_task(asyncio.to_thread(self._commit, before))

    def _passed(self, engine: EngineProcess) -> bool:
        assert engine.stats is not None
        counters = engine.stats.counters()
        return counters["failed"] + counters["served"] >= self._supervisor.config.probation_requests

    async def _take_back(self, engine: EngineProcess, before: Served, why: str) -> None:
        self._probation = None
        self._note_taken_back(engine.served, before.version, why)
        async with self._supervisor.changing:
            engines = self._supervisor.engines
            standby = engines.standby
            if standby is None or standby.served != before:
                try:
                    standby = await engines.start(before, lambda stage: None)
                except EngineFailed as failure:
                    log.error("the model before cannot serve either: %s", failure)
                    return
            await engines.swap(standby)
            self._supervisor.served = before
            await asyncio.to_thread(self._commit, before)
            self._supervisor.now_serving(standby)
            engines.drop_standby()  # what failed is not kept warm

    def _note_taken_back(self, bad: Served, good: str, why: str) -> None:
        self.taken_back = f"version {bad.version} was taken back for {good}: {why}"
        log.error("%s", self.taken_back)
        self._store.record(self._store.resolve(bad.version), taken_back=why)

    def _end_probation(self) -> None:
        if self._probation is not None:
            self._probation.watch.cancel()
            self._probation = None


@dataclass(frozen=True)
class _Probation:
    """A model whose first requests are watched, and what to go back to."""

    engine: EngineProcess
    before: Served
    watch: asyncio.Task[None]


class _Alone:
    """Marks that a change is under way."""

    def __init__(self, changes: ModelChanges) -> None:
        self._changes = changes

    def __enter__(self) -> None:
        self._changes._busy = True

    def __exit__(self, *_: object) -> None:
        self._changes._busy = False
