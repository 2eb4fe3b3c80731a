"""The versions of a service's model on disk, which of them is current, and which was before it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Collection
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
from .limits import PackageLimits
from .signature_policy import SignaturePolicy
from .stored_version import StoredVersion

log = logging.getLogger(__name__)

#: The version served, the one before it, and one more that is being tried.
LEAST_KEPT = 3


class Store:
    """`open`, then anything, then `close`.

    What looks never waits. `add`, `check` and `last_good` are for the event loop and keep it free. Everything else
    blocks while the disk writes, milliseconds mostly, and may be called from any thread.
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
        """`examine` is given each new package and returns its release (0: it says none); raises ModelPackageError if it
        should not be kept. `in_use` returns the versions whose files an engine reads: they are not removed. It is
        called in any thread.
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
        #: Held by whoever changes the directory and the state, never while files are read through or removed.
        self._guard = threading.RLock()
        self._one_at_a_time = asyncio.Lock()
        #: Replaced as a whole, so that readers need no lock.
        self.index = Index()
        #: What was found wrong since `open`, for people.
        self.problems: list[str] = []

    # Life

    def open(self) -> None:
        """Take the directory and read it; raises StoreUnavailable, or KeyUnusable if signatures cannot be checked."""
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
        """Let the directory go; may be called twice."""
        with self._guard:
            self._directory.release()

    # Seeing

    def versions(self) -> list[StoredVersion]:
        """Every version that is kept, the last sent first."""
        return self.index.newest_first()

    def current(self) -> StoredVersion | None:
        """The version that is served, or was when the last daemon ended."""
        state = self.index
        return state.versions.get(state.current or "")

    def get(self, version: StoredVersion | str) -> StoredVersion:
        """A version with what is known of it now; raises VersionUnknown if it is not kept (any more)."""
        if isinstance(version, str):
            return self.resolve(version)
        try:
            return self.index.versions[version.digest]
        except KeyError:
            raise VersionUnknown(f"version {version.version} is not kept any more") from None

    def resolve(self, name: str) -> StoredVersion:
        """The version whose digest begins with `name`; raises VersionUnknown naming the candidates."""
        return self.index.resolve(name)

    # In

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
        """Keep the package in the open directory or tar file `source`, which the sender calls `name`.

        `progress` hears how far it is, `received` that all of it is here and is looked at. Without a name it is called
        by the path at which it was opened, as far as the kernel tells. Where signatures are required, an older release
        than what was served needs `allow_downgrade`: an old signature is a good one.

        Returns the kept version, which is one from before if the same content was sent before. Does not make it
        current. Raises ModelPackageError or StoreUnavailable and then has changed nothing; cancelled, it has either
        kept the whole package or nothing of it. Packages wait for one another. The descriptor stays the caller's.
        """
        async with self._one_at_a_time:
            self._directory.need()
            name = name or _path_of(source)
            package = await self._ingest(source, self._directory.fresh_incoming(), self._limits, progress)
            try:
                received()
            except BaseException:
                await undisturbed(asyncio.to_thread(remove_tree, package.staging))
                raise
            return await undisturbed(asyncio.to_thread(self._commit, package, name, uid, note, allow_downgrade))

    def _commit(
        self, received: IngestedPackage, name: str, uid: int | None, note: str, allow_downgrade: bool
    ) -> StoredVersion:
        try:
            with self._directory.disk():
                failpoint("store.received")
                self._signatures.check(received.files, received.path)
                try:
                    release = self._examine(received.path)
                except ModelPackageError as error:
                    # The sender knows the package by another name than its place here.
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
            self.prune(spare=version)
        except OSError as error:
            log.warning("old versions stay: %s", error)
        return version

    def _check_release(self, digest: str, release: int) -> None:
        state = self.index
        if release >= state.release or digest == state.current:
            return
        raise DowngradeRefused(
            f"the package is release {release}, and this service has served release {state.release} ([model] release in "
            "model.toml). To go back on purpose: shmserve-admin rollback, or update-model --allow-downgrade"
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
        return replace(version, note=note or before.note, activated_seq=before.activated_seq, facts=before.facts)

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
            log.warning("%s: it is replaced by what was sent", error)
            return False
        return True

    # Which one

    def make_current(self, version: StoredVersion | str, *, allow_downgrade: bool = False, **facts: Any) -> None:
        """From now on, and after every restart, this one is served; the one before, and `facts`, are remembered.

        With `allow_downgrade` releases count from this one's on: a number that was too high is not for ever.

        Raises VersionUnknown, or StoreUnavailable and then nothing has changed.
        """
        with self._guard, self._directory.disk():
            self._directory.need()
            kept, state = self.get(version), self.index
            kept = kept.with_facts(facts)
            if kept.digest != state.current:
                previous = state.current if state.current in state.versions else state.previous
                release = kept.release if allow_downgrade else max(kept.release, state.release)
                after = replace(state, current=kept.digest, previous=previous, release=release)
                self._directory.write_current(after)
                self.index = after
                # For the day on which `current` is lost: which versions were served, and in what order.
                kept = replace(kept, activated_seq=1 + max(other.activated_seq for other in state.versions.values()))
            if kept == state.versions[kept.digest]:
                return
            try:
                self._update(kept, "activated")
            except OSError as error:
                log.warning("version %s is current, but its record does not say so: %s", kept.version, error)

    async def last_good(self) -> StoredVersion | None:
        """The version to serve after a restart: the current one, or if that is damaged the last one before it that is not.

        What is damaged is in `problems`. None if no version that was ever current is left whole.
        """
        for version in self.index.by_activation():
            try:
                await self.check(version)
            except (VersionDamaged, SignatureRefused) as error:
                self._problem(str(error))
            else:
                return version
        return None

    async def check(self, version: StoredVersion | str) -> None:
        """Read all its files; raises VersionDamaged unless they are what was stored, SignatureRefused, VersionUnknown.

        To be called before a version is served that was not received in this run of the daemon.
        """

        def work() -> None:
            kept = self.get(version)
            try:
                self._signatures.check(check_files(kept), kept.path)
            except ModelPackageError:
                self.get(version)  # removed meanwhile is another fault than damaged
                raise

        await undisturbed(asyncio.to_thread(work))

    # What is known

    def record(self, version: StoredVersion | str, **facts: Any) -> StoredVersion:
        """Remember `facts` of it (JSON; None forgets one). Each call waits for the disk."""
        with self._guard, self._directory.disk():
            return self._update(self.get(version).with_facts(facts), "facts")

    # Out

    def prune(self, keep_versions: int | None = None, *, spare: StoredVersion | None = None) -> list[StoredVersion]:
        """Remove the oldest beyond `keep_versions`; returns them.

        Never the current one, the previous one, one in use or `spare`, and those that were never served
        go first.
        """
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
            surplus = len(state.versions) - (self._keep_versions if keep_versions is None else keep_versions)
            removed = may_go[: max(0, surplus)]
            gone = [self._retire(version) for version in removed]
        self._directory.remove_trees(gone)
        return removed

    def _retire(self, version: StoredVersion) -> Path:
        """Take a version out of sight; its files are at the returned place still, to be removed without the guard."""
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
        return os.readlink(f"/proc/self/fd/{descriptor}")  # asks the kernel, not the file system behind it
    except OSError:
        return "?"
