"""Rollout of a model version under running robots: update, canary phase, rollback.

An update starts a new engine beside the serving one (blue-green deployment), checks its contract against the serving
model's, and swaps. The model is then on probation (see probation.py): if it fails, the deployment before serves again and
the version is marked as rolled back. A rollback skips both checks, because the version has served before. An update in
place stops the old engine first, for a model that does not fit twice, and starts it again if the new one fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shmserve.contract import contract_differences
from shmserve.shortened import shortened

from ..config.config import check_device
from ..failpoints import failpoint
from ..host.logging import ROLLED_BACK
from ..ipc.release import RELEASE_MISMATCH
from ..store.errors import StoreUnavailable
from ..store.ingest import BytesIngested, undisturbed
from ..store.store import Store
from ..store.stored_version import StoredVersion
from ..supervisor import Deployment, EngineProcess, EngineStartError, Supervisor
from .probation import Probation
from .version_log import VersionLog

log = logging.getLogger(__name__)

#: The errors of an engine that found too little room on its GPU (engine/device/memory.py), or no such device
#: (engine/device/chosen.py).
DEVICE_MEMORY_SHORT, DEVICE_MISSING = "DeviceMemoryShort", "DeviceMissing"
#: Characters of a refusal's reason that the version's metadata keeps.
_REASON_TEXT = 300

#: Called with each step of an update or a rollback, and its details.
ReportStep = Callable[[str, dict[str, Any]], None]


class RolloutRefused(Exception):
    """The model is not replaced: `reason` is a word for programs, the text states the cause and the remedy."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class UpdateOptions:
    """Options of an update."""

    device: str | None = None
    in_place: bool = False
    allow_contract_change: bool = False
    #: Accept an older release than the served one, where signatures are required.
    allow_downgrade: bool = False
    note: str = ""
    #: Roll back automatically if the new model's first requests fail.
    probation: bool = True


class Rollout:
    """One change at a time; a second one meanwhile is refused as busy."""

    def __init__(self, supervisor: Supervisor, store: Store) -> None:
        self._supervisor = supervisor
        self._store = store
        self._busy = False
        self._probation: Probation | None = None
        #: The last automatic rollback, until an update succeeds; for people.
        self.rolled_back: str | None = None
        self.version_log = VersionLog(store, supervisor.engines)

    async def update(
        self, fd: int, name: str, uid: int, options: UpdateOptions, report_step: ReportStep
    ) -> dict[str, Any]:
        """Serve the package behind `fd`, called `name`; the old model serves until the new one is warm.

        Raises RolloutRefused, ConfigError, ModelPackageError, StoreUnavailable or EngineStartError; then the old model
        serves on.
        """
        if options.device is not None:
            check_device(options.device)
        with self._exclusive():
            # Before the old engine is stopped (--in-place), or another release receives the package.
            await self._supervisor.engines.check_release()
            report_step("receive", {})
            with self._supervisor.ingest.of(name, "receive") as report:

                def receiving(progress: BytesIngested) -> None:
                    report(progress.read_bytes, progress.total_bytes)
                    report_step("receive", {"bytes": progress.read_bytes, "of": progress.total_bytes})

                stored = await self._store.add(
                    fd,
                    name,
                    uid=uid,
                    note=options.note,
                    allow_downgrade=options.allow_downgrade,
                    progress=receiving,
                    received=lambda: report_step("check", {}),
                )
            failpoint("update.received")
            return await self._change(stored, options.device or self._device(), options, report_step)

    async def rollback(self, version: str | None, report_step: ReportStep) -> dict[str, Any]:
        """Serve an earlier version again, at once if its engine is the warm standby. Raises as `update`.

        It has no probation: an automatic rollback would return to the version that the operator left.
        """
        with self._exclusive():
            target = self.before() if version is None else self._store.resolve(version)
            if target is None:
                raise RolloutRefused("no_previous", self._no_previous())
            report_step("check", {"version": target.version})
            device = str(target.metadata.get("device") or self._device())
            standby = self._supervisor.engines.standby
            if standby is None or standby.deployment != _deployment(target, device):
                with self._supervisor.ingest.of_check(target, _bytes_of(report_step, target)) as read:
                    await self._store.check(target, read)
            options = UpdateOptions(allow_contract_change=True, probation=False)
            return await self._change(target, device, options, report_step)

    def before(self) -> StoredVersion | None:
        """Return the target of a rollback: the version served last before the current one and not rolled back."""
        deployment = self._supervisor.deployment
        candidates = [
            stored
            for stored in self._store.versions()
            if stored.activated_seq
            and not stored.metadata.get("rolled_back")
            and (not deployment or stored.version != deployment.version)
        ]
        return max(candidates, key=lambda stored: stored.activated_seq, default=None)

    async def close(self) -> None:
        """End the probation, and return once the version log is on the disk."""
        self._end_probation()
        await self.version_log.close()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        if self._busy:
            raise RolloutRefused("busy", "another update or rollback is under way: wait for it to end")
        self._check_not_stopping()
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _check_not_stopping(self) -> None:
        if self._supervisor.stopping:
            raise RolloutRefused("stopping", "the daemon is stopping: it accepts no changes")

    def _device(self) -> str:
        deployment = self._supervisor.deployment
        return deployment.device if deployment is not None else self._supervisor.config.device

    def _no_previous(self) -> str:
        bad = [stored.version for stored in self._store.versions() if stored.metadata.get("rolled_back")]
        if bad:
            return (
                f"no earlier version to go back to except {', '.join(bad)}, which did not work "
                "(shmserve-admin versions shows why): name it to try it again"
            )
        return "no earlier version to go back to: this is the first one served here"

    async def _change(
        self, stored: StoredVersion, device: str, options: UpdateOptions, report_step: ReportStep
    ) -> dict[str, Any]:
        supervisor = self._supervisor
        await supervisor.begun.wait()
        deployment = _deployment(stored, device)
        serving = supervisor.engines.serving
        if serving is not None and serving.deployment == deployment:
            return {"version": stored.version, "changed": False, "pause_ms": 0.0}
        supervisor.begin_update()
        try:
            change = self._in_place if options.in_place else self._beside
            return await change(deployment, options, report_step)
        except (EngineStartError, RolloutRefused) as error:
            if _is_about_the_version(error):
                self.version_log.set_metadata(stored.version, {"refused": shortened(str(error), _REASON_TEXT)})
            raise
        finally:
            supervisor.end_update()

    async def _beside(self, deployment: Deployment, options: UpdateOptions, report_step: ReportStep) -> dict[str, Any]:
        engines, contract = self._supervisor.engines, self._contract()
        engine = engines.claim_standby(deployment)
        was_standby = engine is not None
        if engine is None:
            report_step("start", {})
            failpoint("update.before_start")
            engine = await self._start_beside(deployment, report_step)
        try:
            failpoint("update.warm")
            _check_contract(contract, engine, options)
            # Not cancelled with the caller from here on: the swap and its record belong together.
            return await undisturbed(self._swap_locked(engine, options, report_step))
        finally:
            if engine is not engines.serving and engine is not engines.standby and engine.alive:
                if was_standby:
                    engines.keep_standby(engine)
                else:
                    await undisturbed(engines.discard(engine))

    async def _start_beside(self, deployment: Deployment, report_step: ReportStep) -> EngineProcess:
        """Start a warm engine of `deployment`; if GPU memory is short, stop the standby engine first."""
        engines = self._supervisor.engines
        try:
            return await engines.start(deployment, _steps(report_step))
        except EngineStartError as failure:
            if failure.error != DEVICE_MEMORY_SHORT:
                raise
            dropped = [task for task in (engines.drop_standby(), engines.drop_twin()) if task is not None]
            if not dropped:
                raise
            log.info("GPU memory is too short: stopping the standby engine, then trying once more")
            await asyncio.wait(dropped)
            return await engines.start(deployment, _steps(report_step))

    async def _swap_locked(
        self, engine: EngineProcess, options: UpdateOptions, report_step: ReportStep
    ) -> dict[str, Any]:
        async with self._supervisor.changing:
            report_step("swap", {})
            return await self._swap(engine, options, None)

    async def _in_place(
        self, deployment: Deployment, options: UpdateOptions, report_step: ReportStep
    ) -> dict[str, Any]:
        """Stop the old engine first, for a model that does not fit twice; start it again if the new one fails."""
        supervisor, engines = self._supervisor, self._supervisor.engines
        contract = self._contract()
        async with supervisor.changing:
            old = supervisor.deployment
            assert old is not None
            report_step("stop", {})
            start_s = time.monotonic()
            try:
                await undisturbed(engines.stop_all())
                failpoint("update.stopped_old")
                report_step("start", {})
                engine = await engines.start(deployment, _steps(report_step))
                try:
                    failpoint("update.warm")
                    _check_contract(contract, engine, options)
                    report_step("swap", {})
                    return await undisturbed(self._swap(engine, options, start_s))
                finally:
                    if engine is not engines.serving and engine.alive:
                        await undisturbed(engines.discard(engine))
            finally:
                if engines.serving is None and not supervisor.stopping:
                    log.warning("the new model does not serve: version %s is started again", old.version)
                    await undisturbed(self._bring_back(old))

    async def _bring_back(self, deployment: Deployment) -> None:
        """Start the deployment before again after it was stopped; the caller holds `changing`."""
        try:
            await self._go_back(deployment)
        except EngineStartError as failure:
            log.error("%s", failure)
            self._supervisor.revive()  # tries again until it serves

    async def _swap(self, engine: EngineProcess, options: UpdateOptions, start_s: float | None) -> dict[str, Any]:
        """Let `engine` serve and record it; `start_s`: when requests were paused. The caller holds `changing`."""
        supervisor = self._supervisor
        self._check_not_stopping()
        failpoint("update.before_swap")
        first = engine.stats.counters() if engine.stats is not None else {}
        pause_s = await supervisor.engines.swap(engine)
        if start_s is not None:
            pause_s = time.monotonic() - start_s
        failpoint("update.swapped")
        self._end_probation()
        before = supervisor.deployment
        assert before is not None
        supervisor.deployment = engine.deployment
        supervisor.now_serving(engine)
        rolled_back, self.rolled_back = self.rolled_back, None
        if options.probation and before != engine.deployment:
            self._begin_probation(Probation(engine, before, first, supervisor.config))
        try:
            await self.version_log.make_current(engine.deployment, allow_downgrade=options.allow_downgrade)
        except StoreUnavailable:
            # A version that a restart would not serve must not serve now.
            self._end_probation()
            self.rolled_back = self.rolled_back or rolled_back
            log.error("version %s cannot be made current: back to %s", engine.deployment.version, before.version)
            await self._bring_back(before)
            raise
        failpoint("update.committed")
        return {"version": engine.deployment.version, "changed": True, "pause_ms": round(pause_s * 1e3, 3)}

    async def _go_back(self, deployment: Deployment) -> None:
        """Serve the deployment before again, from standby if possible; the caller holds `changing`. Raises EngineStartError."""
        engines = self._supervisor.engines
        engine = engines.claim_standby(deployment)
        if engine is None:
            engine = await engines.start(deployment, lambda stage: None)
        await engines.swap(engine)
        self._supervisor.deployment = deployment
        self._supervisor.now_serving(engine)
        engines.drop_standby()  # the failed model is not kept warm

    def _contract(self) -> dict[str, Any] | None:
        """Return the serving model's contract, or None."""
        model = self._supervisor.engines.model
        return model["contract"] if model is not None else None

    # Probation

    def _begin_probation(self, probation: Probation) -> None:
        self._probation = probation
        probation.begin(lambda why: self._take_back(probation, why))

    def is_on_probation(self, engine: EngineProcess) -> bool:
        """Report whether a crash of this engine rolls its model back."""
        probation = self._probation
        return probation is not None and not probation.over and probation.engine is engine

    def crashed(self, engine: EngineProcess) -> None:
        """Handle the death of the serving engine: on probation, the deployment before is started in its place."""
        probation = self._probation
        if probation is None or not self.is_on_probation(engine):
            return
        self._end_probation()
        self._record_rollback(engine.deployment, probation.before, "its engine died on probation")
        self._supervisor.deployment = probation.before

    async def _take_back(self, probation: Probation, why: str) -> None:
        async with self._supervisor.changing:
            if self._supervisor.engines.serving is not probation.engine or self._supervisor.stopping:
                return  # another update was first
            self._probation = None
            try:
                await self._go_back(probation.before)
            except EngineStartError as failure:
                log.error("%s; the model before it cannot serve either: %s", why, failure)
                return
            self._record_rollback(probation.engine.deployment, probation.before, why)

    def _record_rollback(self, bad: Deployment, good: Deployment, why: str) -> None:
        self.rolled_back = f"version {bad.version} was rolled back to {good.version}: {why}"
        log.error("%s", self.rolled_back, extra={"message_id": ROLLED_BACK})
        # If only the device differed, the version itself is good.
        self.version_log.set_metadata(
            bad.version, {"rolled_back": why} if bad.version != good.version else {}, then_current=good
        )

    def _end_probation(self) -> None:
        probation, self._probation = self._probation, None
        if probation is not None:
            probation.end()


def _deployment(stored: StoredVersion, device: str) -> Deployment:
    return Deployment(stored.path, stored.version, device, stored.source)


def _is_about_the_version(error: EngineStartError | RolloutRefused) -> bool:
    """Report whether the version itself caused it, rather than the device, its memory or the daemon's release."""
    if isinstance(error, RolloutRefused):
        return error.reason == "contract"
    return error.error not in (DEVICE_MEMORY_SHORT, DEVICE_MISSING, RELEASE_MISMATCH)


def _steps(report_step: ReportStep) -> Callable[[str], None]:
    """Return a callback that reports an engine's stages as steps."""
    return lambda stage: report_step("warm up" if stage == "warming" else "load", {})


def _bytes_of(report_step: ReportStep, target: StoredVersion) -> Callable[[int, int | None], None]:
    """Return a callback that reports the bytes of a check as its step."""
    return lambda done, of: report_step("check", {"version": target.version, "bytes": done, "of": of})


def _check_contract(before: dict[str, Any] | None, engine: EngineProcess, options: UpdateOptions) -> None:
    if options.allow_contract_change or before is None or engine.ready is None:
        return
    if differences := contract_differences(before, engine.ready.contract):
        raise RolloutRefused(
            "contract",
            f"the new model gives or takes something else than the one that serves: {'; '.join(differences)}. "
            "If the robots are ready for that: --allow-contract-change",
        )
