"""Store of a service's model versions on disk: ingest, activation, integrity checks and removal."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from shmserve.errors import ModelPackageError
from shmserve.package_signature import SignatureRefused, need_cryptography

from ..failpoints import failpoint
from .atomic_files import remove_tree
from .directory import StoreDirectory
from .errors import DowngradeRefused, VersionDamaged, VersionUnknown
from .index import Index
from .ingest import BytesIngested, Ingest, IngestedPackage, ingest, undisturbed
from .integrity import check_files
from .kept_files import shareable_files
from .limits import PackageLimits
from .signature_policy import SignaturePolicy
from .stored_version import StoredVersion

log = logging.getLogger(__name__)

#: The served version, the previous one, and one in rollout.
LEAST_KEPT = 3
_NOT_REMOVED = "old versions cannot be removed: %s"

#: Shows the check of a version during its block, which calls the function with the bytes that were read so far.
CheckProgress = Callable[[StoredVersion], AbstractContextManager[Callable[[int], None]]]


def _no_progress(version: StoredVersion) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda done: None)


class Store:
    """The store, used between `open` and `close`.

    Read-only methods never block. `add`, `check` and `last_good` are coroutines that do not block the event loop. Every
    other method blocks while the disk writes, mostly for milliseconds, and may be called from any thread.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_versions: int = 5,
        limits: PackageLimits | None = None,
        signatures: SignaturePolicy | None = None,
        examine: Callable[[Path], int] = lambda path: 0,
        ingest: Ingest = ingest,
        in_use: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """Remember the settings.

        `examine` is called with the path of each new package; it returns the release (0 without one) or raises
        ModelPackageError to refuse the package. `in_use` returns the versions whose files an engine reads, which are
        not removed; it is called in any thread.
        """
        if keep_versions < LEAST_KEPT:
            raise ValueError(f"keep_versions = {keep_versions}: {LEAST_KEPT} or more")
        self.directory = directory
        self._directory = StoreDirectory(directory, self._problem)
        self._keep_versions = keep_versions
        self._limits = limits or PackageLimits()
        self._signatures = signatures or SignaturePolicy()
        self._examine = examine
        self._ingest = ingest
        self._in_use = in_use
        #: Held while the directory and the index change, never while the files of a version are read or removed.
        self._guard = threading.RLock()
        #: Held while the files of retired versions are removed.
        self._removing = threading.Lock()
        self._one_at_a_time = asyncio.Lock()
        #: Replaced as a whole, so that readers need no lock.
        self.index = Index()
        #: Texts of the problems found since `open`.
        self.problems: list[str] = []

    # Life

    def open(self) -> None:
        """Lock and read the directory; raise StoreUnavailable, or KeyUnusable if signatures cannot be checked."""
        if self._signatures.keys:
            need_cryptography()
        try:
            with self._guard, self._directory.disk():
                self._directory.acquire()
                self._directory.sweep()
                self.index = self._directory.read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the directory, once a removal that is under way has ended; may be called twice."""
        with self._removing, self._guard:
            self._directory.release()

    # Reading

    def versions(self) -> list[StoredVersion]:
        """Return every kept version, the last sent first."""
        return self.index.newest_first()

    def current(self) -> StoredVersion | None:
        """Return the version that is served, or was served when the last daemon ended."""
        state = self.index
        return state.versions.get(state.current or "")

    def get(self, version: StoredVersion | str) -> StoredVersion:
        """Return a version with its present metadata; raise VersionUnknown if it is not kept, or no longer."""
        if isinstance(version, str):
            return self.resolve(version)
        try:
            return self.index.versions[version.digest]
        except KeyError:
            raise VersionUnknown(f"version {version.version} is no longer kept") from None

    def resolve(self, name: str) -> StoredVersion:
        """Return the version whose digest begins with `name`; raise VersionUnknown with the candidates."""
        return self.index.resolve(name)

    # Ingest

    async def add(
        self,
        source: int,
        name: str | None = None,
        *,
        uid: int | None = None,
        note: str = "",
        allow_downgrade: bool = False,
        progress: Callable[[BytesIngested], None] | None = None,
        received: Callable[[], None] = lambda: None,
    ) -> StoredVersion:
        """Ingest the package in the open directory or tar file `source`, which the sender calls `name`.

        `progress` is called with the progress, `received` once the whole package is ingested and its checks begin.
        Without a name it gets the path at which it was opened, if the kernel knows that. If signatures are required, a
        release older than one that was served needs `allow_downgrade`, because its old signature is still valid.

        Returns the kept version, which is an earlier one if the same content was sent before. Does not make it
        current. Raises ModelPackageError or StoreUnavailable after changing nothing; if cancelled, it has kept
        either the whole package or nothing of it. One package is ingested at a time. The descriptor stays the caller's.
        """
        async with self._one_at_a_time:
            self._directory.need()
            name = name or _path_of(source)
            kept = shareable_files(self.index.newest_first())
            package = await self._ingest(source, self._directory.fresh_incoming(), self._limits, progress, kept)
            try:
                received()
            except BaseException:
                await undisturbed(asyncio.to_thread(remove_tree, package.staging))
                raise

            async def commit() -> StoredVersion:
                version, gone = await asyncio.to_thread(self._commit, package, name, uid, note, allow_downgrade)
                if gone:  # the caller does not wait: a third of a second for each GB
                    asyncio.get_running_loop().run_in_executor(None, self._remove, gone)
                return version

            return await undisturbed(commit())

    def _commit(
        self, received: IngestedPackage, name: str, uid: int | None, note: str, allow_downgrade: bool
    ) -> tuple[StoredVersion, list[Path]]:
        """Make the package a version; return it, and the paths of the files of retired versions."""
        try:
            with self._directory.disk():
                failpoint("store.received")
                self._signatures.check(received.files, received.path)
                try:
                    release = self._examine(received.path)
                except ModelPackageError as error:
                    # The sender's name for the package, in place of its path in the store.
                    raise type(error)(str(error).replace(str(received.path), name)) from error
                failpoint("store.examined")
                if self._signatures.required and not allow_downgrade:
                    self._check_release(received.digest, release)
                is_kept = self._is_kept_whole(received.digest)
                with self._guard:
                    self._directory.need()
                    version = self._describe(received, name, uid, note, release)
                    if is_kept:
                        self._directory.renew_signature(received.path, version)
                        self._update(version, "store.again")
                    else:
                        self._place(received, version)
        finally:
            remove_tree(received.staging)
        try:
            return version, self._retire_surplus(self._keep_versions, version)[1]
        except OSError as error:
            log.warning(_NOT_REMOVED, error)
            return version, []

    def _remove(self, gone: list[Path]) -> None:
        with self._removing:
            if not self._directory.is_acquired:
                return  # closed meanwhile: the next `open` removes them
            try:
                self._directory.remove_trees(gone)
            except OSError as error:
                log.warning(_NOT_REMOVED, error)

    def _check_release(self, digest: str, release: int) -> None:
        state = self.index
        if release >= state.release or digest == state.current:
            return
        raise DowngradeRefused(
            f"the package is release {release}, and this service has served release {state.release} ([model] release "
            "in model.toml). To go back deliberately: shmserve-admin rollback, or update-model --allow-downgrade"
        )

    def _describe(
        self, received: IngestedPackage, name: str, uid: int | None, note: str, release: int
    ) -> StoredVersion:
        versions = self.index.versions
        version = StoredVersion(
            received.digest,
            self._directory.path_of(received.digest),
            name,
            uid,
            note,
            added_s=time.time(),
            files=received.files,
            release=release,
            added_seq=1 + max((version.added_seq for version in versions.values()), default=0),
        )
        before = versions.get(version.digest)
        if before is None:
            return version
        return replace(version, note=note or before.note, activated_seq=before.activated_seq, metadata=before.metadata)

    def _place(self, received: IngestedPackage, version: StoredVersion) -> None:
        damaged = self._directory.place(received.path, version)
        self.index = self.index.with_version(version)
        if damaged is not None:
            remove_tree(damaged)

    def _is_kept_whole(self, digest: str) -> bool:
        kept = self.index.versions.get(digest)
        if kept is None:
            return False
        try:
            check_files(kept)
        except VersionDamaged as error:
            log.warning("%s: the package that was sent replaces it", error)
            return False
        return True

    # Activation

    def make_current(self, version: StoredVersion | str, *, allow_downgrade: bool = False, **metadata: Any) -> None:
        """Make a version the served one, also after restarts; record the previous one, and `metadata`.

        With `allow_downgrade` the highest release becomes this version's, so that a number that was too high by mistake
        can be corrected.

        Raises VersionUnknown or StoreUnavailable, after changing nothing.
        """
        with self._guard, self._directory.disk():
            self._directory.need()
            kept, state = self.get(version), self.index
            kept = kept.with_metadata(metadata)
            if kept.digest != state.current:
                previous = state.current if state.current in state.versions else state.previous
                release = kept.release if allow_downgrade else max(kept.release, state.release)
                after = replace(state, current=kept.digest, previous=previous, release=release)
                self._directory.write_current(after)
                self.index = after
                # The order of activations, in case the file `current` is lost.
                kept = replace(kept, activated_seq=1 + max(other.activated_seq for other in state.versions.values()))
            if kept == state.versions[kept.digest]:
                return
            try:
                self._update(kept, "activated")
            except OSError as error:
                log.warning("version %s is current, but its record cannot be updated: %s", kept.version, error)

    async def last_good(self, progress: CheckProgress = _no_progress) -> StoredVersion | None:
        """Return the version to serve after a restart: the current one or, if damaged, the latest undamaged one.

        `progress` shows the check of each. Adds damaged versions to `problems`. Returns None if every version that was ever current is damaged.
        """
        for version in self.index.by_activation():
            try:
                with progress(version) as read:
                    await self.check(version, read)
            except (VersionDamaged, SignatureRefused) as error:
                self._problem(str(error))
            else:
                return version
        return None

    async def check(self, version: StoredVersion | str, read: Callable[[int], None] = lambda done: None) -> None:
        """Check all files of a version, before it is served if it was not ingested in this run of the daemon.

        `read` is called with the bytes that were read so far, in another thread. Raises VersionDamaged if they differ
        from the stored ones, SignatureRefused or VersionUnknown. Cancelled, it stops reading.
        """
        done, is_cancelled = 0, False

        def count(more: int) -> None:
            nonlocal done
            if is_cancelled:  # a thread cannot be ended from outside
                raise ModelPackageError("the check was cancelled")
            done += more
            read(done)

        def work() -> None:
            kept = self.get(version)
            try:
                self._signatures.check(check_files(kept, count), kept.path)
            except ModelPackageError:
                self.get(version)  # raises VersionUnknown if the version was removed meanwhile
                raise

        checking = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            await asyncio.shield(checking)
        except asyncio.CancelledError:
            is_cancelled = True
            with suppress(ModelPackageError):
                await undisturbed(checking)
            raise

    # Metadata

    def set_metadata(self, version: StoredVersion | str, **metadata: Any) -> StoredVersion:
        """Record `metadata` of a version (JSON; None removes a key). Each call waits for the disk."""
        with self._guard, self._directory.disk():
            return self._update(self.get(version).with_metadata(metadata), "metadata")

    # Removal

    def prune(self, keep_versions: int | None = None, *, spare: StoredVersion | None = None) -> list[StoredVersion]:
        """Remove the oldest versions beyond `keep_versions` and return them; versions that were never served go first.

        The current version, the previous one, those in use and `spare` are never removed.
        """
        removed, gone = self._retire_surplus(self._keep_versions if keep_versions is None else keep_versions, spare)
        self._directory.remove_trees(gone)
        return removed

    def _retire_surplus(self, keep: int, spare: StoredVersion | None) -> tuple[list[StoredVersion], list[Path]]:
        """Retire the oldest versions; return them, and the paths of their files, to be removed without the guard."""
        in_use = self._in_use()
        with self._guard, self._directory.disk():
            self._directory.need()
            state = self.index
            stays = {state.current, state.previous, spare.digest if spare else None}
            may_go = [
                version
                for version in state.versions.values()
                if version.digest not in stays and version.version not in in_use
            ]
            may_go.sort(key=lambda version: (version.activated_seq > 0, version.added_seq))
            removed = may_go[: max(0, len(state.versions) - keep)]
            return removed, [self._retire(version) for version in removed]

    def _retire(self, version: StoredVersion) -> Path:
        """Remove a version from the index; return the path of its files, to be removed without the guard."""
        gone = self._directory.retire(version)
        self.index = self.index.without_version(version.digest)
        self._directory.forget(version)
        return gone

    # Parts

    def _update(self, version: StoredVersion, steps: str) -> StoredVersion:
        self._directory.need()
        self._directory.write_record(version, steps)
        self.index = self.index.with_version(version)
        return version

    def _problem(self, text: str) -> None:
        log.error("%s", text)
        self.problems.append(text)


def _path_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # answered by the kernel, not by the file system
    except OSError:
        return "?"
