"""The versions of a service's model on disk, which of them is current, and which was before it.

    <state directory>/<service>/models/
      lock                        held by the one daemon that uses this directory
      current                     which version is served and which was before: one small file, replaced by rename
      versions/<digest>/          a package, read-only; the digest of its content is its name
      versions/<digest>.json      what is known of it
      versions/incoming-<random>  on its way in
      versions/removing-<random>  on its way out

A version exists once its directory has its final name; its record was written before, and its bytes were on the disk
before that. Whatever moment the daemon is killed at, `open` finds the old state or the new one and sweeps up the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shmserve.errors import ModelPackageError
from shmserve.package_files import CACHE, SIGNATURE, VERSION_DIGITS, PackageFile, content_digest, package_files, shown
from shmserve.package_signature import (
    SIGNATURE_BYTES,
    PublicKey,
    SignatureRefused,
    check_signature,
    need_cryptography,
)

from ..failpoints import failpoint
from .durable import remove_tree, sync_directory, write_json
from .errors import StoreUnavailable, VersionDamaged, VersionUnknown, unavailable
from .limits import Limits
from .receive import Progress, Received, receive, undisturbed
from .stored_version import FORMAT, StoredVersion

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_INCOMING = "incoming-"
_REMOVING = "removing-"
#: The version served, the one before it, and one more that is being tried.
LEAST_KEPT = 3
_CANDIDATES_SHOWN = 10


@dataclass(frozen=True)
class Trust:
    """Whose packages are taken. With keys, a signature that is there must be good even where none is required."""

    required: bool = False
    keys: Sequence[PublicKey] = ()

    def __post_init__(self) -> None:
        if self.required and not self.keys:
            raise ValueError("signatures are required, but there is no key that may have made them (signature_keys)")


@dataclass(frozen=True)
class _State:
    """Replaced as a whole, so that whoever looks needs no lock."""

    versions: Mapping[str, StoredVersion] = field(default_factory=dict)
    current: str | None = None
    previous: str | None = None

    def with_version(self, version: StoredVersion) -> _State:
        return replace(self, versions={**self.versions, version.digest: version})

    def without_version(self, digest: str) -> _State:
        return replace(self, versions={key: version for key, version in self.versions.items() if key != digest})


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
        limits: Limits | None = None,
        trust: Trust | None = None,
        examine: Callable[[Path], object] = lambda path: None,
    ) -> None:
        """`examine` is given each new package, and raises ModelPackageError if it should not be kept."""
        if keep_versions < LEAST_KEPT:
            raise ValueError(f"keep_versions = {keep_versions}: {LEAST_KEPT} or more")
        self.directory = directory
        self._versions_directory = directory / "versions"
        self._keep_versions = keep_versions
        self._limits = limits or Limits()
        self._trust = trust or Trust()
        self._examine = examine
        #: Held by whoever changes the directory and the state, never while files are read through or removed.
        self._guard = threading.RLock()
        self._one_at_a_time = asyncio.Lock()
        self._lock: int | None = None
        self._state = _State()
        #: What was found wrong since `open`, for people.
        self.problems: list[str] = []

    # Life

    def open(self) -> None:
        """Take the directory and read it; raises StoreUnavailable, or KeyUnusable if signatures cannot be checked."""
        if self._trust.keys:
            need_cryptography()
        try:
            with self._guard, self._disk():
                self._acquire()
                self._sweep()
                self._state = self._read_current(self._read_versions())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the directory go; may be called twice."""
        with self._guard:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    # Seeing

    def versions(self) -> list[StoredVersion]:
        """Every version that is kept, the last sent first."""
        return sorted(self._state.versions.values(), key=lambda version: version.serial, reverse=True)

    def current(self) -> StoredVersion | None:
        """The version that is served, or was when the last daemon ended."""
        state = self._state
        return state.versions.get(state.current or "")

    def previous(self) -> StoredVersion | None:
        """The version that was current before."""
        state = self._state
        return state.versions.get(state.previous or "")

    def get(self, version: StoredVersion | str) -> StoredVersion:
        """A version with what is known of it now; raises VersionUnknown if it is not kept (any more)."""
        if isinstance(version, str):
            return self.resolve(version)
        try:
            return self._state.versions[version.digest]
        except KeyError:
            raise VersionUnknown(f"version {version.version} is not kept any more") from None

    def resolve(self, name: str) -> StoredVersion:
        """The version whose digest begins with `name`; raises VersionUnknown naming the candidates."""
        prefix = name.strip().lower()
        versions = self.versions()
        found = [version for version in versions if prefix and version.digest.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        candidates = ", ".join(version.version for version in (found or versions)[:_CANDIDATES_SHOWN])
        if found:
            raise VersionUnknown(f"{shown(name)} is the beginning of {len(found)} versions: {candidates}")
        raise VersionUnknown(f"no kept version is named {shown(name)}; kept are {candidates or 'none'}")

    # In

    async def add(
        self,
        source: int,
        name: str | None = None,
        *,
        uid: int | None = None,
        note: str = "",
        progress: Callable[[Progress], None] | None = None,
        received: Callable[[], None] = lambda: None,
    ) -> StoredVersion:
        """Keep the package in the open directory or tar file `source`, which the sender calls `name`.

        `progress` hears how far it is, `received` that all of it is here and is looked at. Without a name it is called
        by the path at which it was opened, as far as the kernel tells.

        Returns the kept version, which is one from before if the same content was sent before. Does not make it
        current. Raises ModelPackageError or StoreUnavailable and then has changed nothing; cancelled, it has either
        kept the whole package or nothing of it. Packages wait for one another. The descriptor stays the caller's.
        """
        async with self._one_at_a_time:
            self._need_open()
            name = name or _path_of(source)
            package = await receive(source, self._fresh(_INCOMING), self._limits, progress)
            try:
                received()
            except BaseException:
                await undisturbed(asyncio.to_thread(remove_tree, package.staging))
                raise
            return await undisturbed(asyncio.to_thread(self._commit, package, name, uid, note))

    def _commit(self, received: Received, name: str, uid: int | None, note: str) -> StoredVersion:
        try:
            with self._disk():
                failpoint("store.received")
                self._check_trust(received.files, received.path)
                try:
                    self._examine(received.path)
                except ModelPackageError as error:
                    # The sender knows the package by another name than its place here.
                    raise type(error)(str(error).replace(str(received.path), name)) from error
                failpoint("store.examined")
                is_kept = self._is_kept_whole(received.digest)
                with self._guard:
                    self._need_open()
                    version = self._describe(received, name, uid, note)
                    if is_kept:
                        self._renew_signature(received, version)
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

    def _describe(self, received: Received, name: str, uid: int | None, note: str) -> StoredVersion:
        versions = self._state.versions
        version = StoredVersion(
            received.digest,
            self._versions_directory / received.digest,
            name,
            uid,
            note,
            added_s=time.time(),
            files=received.files,
            serial=1 + max((version.serial for version in versions.values()), default=0),
        )
        before = versions.get(version.digest)
        if before is None:
            return version
        return replace(version, note=note or before.note, turn=before.turn, pinned=before.pinned, facts=before.facts)

    def _place(self, received: Received, version: StoredVersion) -> None:
        """Make a received package a version; the moment is the second rename."""
        damaged: Path | None = None
        self._write_record(version, "store.record")
        if version.path.exists():
            damaged = self._fresh(_REMOVING)
            version.path.rename(damaged)
        failpoint("store.before_rename")
        received.path.rename(version.path)
        failpoint("store.after_rename")
        sync_directory(self._versions_directory)
        failpoint("store.after_sync")
        version.path.chmod(0o500)
        self._state = self._state.with_version(version)
        if damaged is not None:
            remove_tree(damaged)

    def _is_kept_whole(self, digest: str) -> bool:
        kept = self._state.versions.get(digest)
        if kept is None:
            return False
        try:
            self._check_files(kept)
        except VersionDamaged as error:
            log.warning("%s: it is replaced by what was sent", error)
            return False
        return True

    def _renew_signature(self, received: Received, version: StoredVersion) -> None:
        """The same files may come with the signature of another key; the signature is no part of the content."""
        sent, kept = received.path / SIGNATURE, version.path / SIGNATURE
        if not sent.exists() or (kept.exists() and sent.read_bytes() == kept.read_bytes()):
            return
        version.path.chmod(0o700)
        failpoint("store.before_signature")
        sent.replace(kept)
        failpoint("store.after_signature")
        sync_directory(version.path)
        version.path.chmod(0o500)

    # Which one

    def make_current(self, version: StoredVersion | str, **facts: Any) -> None:
        """From now on, and after every restart, this one is served; the one before, and `facts`, are remembered.

        Raises VersionUnknown, or StoreUnavailable and then nothing has changed.
        """
        with self._guard, self._disk():
            self._need_open()
            kept, state = self.get(version), self._state
            kept = kept.with_facts(facts)
            if kept.digest != state.current:
                previous = state.current if state.current in state.versions else state.previous
                write_json(
                    self.directory / "current",
                    {"format": FORMAT, "current": kept.digest, "previous": previous, "since_s": time.time()},
                    steps="current",
                )
                self._state = replace(state, current=kept.digest, previous=previous)
                # For the day on which `current` is lost: which versions were served, and in what order.
                kept = replace(kept, turn=1 + max(other.turn for other in state.versions.values()))
            if kept == state.versions[kept.digest]:
                return
            try:
                self._update(kept, "turn")
            except OSError as error:
                log.warning("version %s is current, but its record does not say so: %s", kept.version, error)

    async def last_good(self) -> StoredVersion | None:
        """The version to serve after a restart: the current one, or if that is damaged the last one before it that is not.

        What is damaged is in `problems`. None if no version that was ever current is left whole.
        """
        for version in _by_turn(self._state):
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
                self._check_trust(self._check_files(kept), kept.path)
            except ModelPackageError:
                self.get(version)  # removed meanwhile is another fault than damaged
                raise

        await undisturbed(asyncio.to_thread(work))

    # What is known

    def record(self, version: StoredVersion | str, **facts: Any) -> StoredVersion:
        """Remember `facts` of it (JSON; None forgets one). Each call waits for the disk."""
        with self._guard, self._disk():
            return self._update(self.get(version).with_facts(facts), "facts")

    def pin(self, version: StoredVersion | str, *, pinned: bool = True) -> StoredVersion:
        """A pinned version is kept however old it is."""
        with self._guard, self._disk():
            return self._update(replace(self.get(version), pinned=pinned), "facts")

    # Out

    def prune(self, keep_versions: int | None = None, *, spare: StoredVersion | None = None) -> list[StoredVersion]:
        """Remove the oldest beyond `keep_versions`; returns them.

        Never the current one, the previous one, a pinned one or `spare`, and those that were never served go first.
        """
        with self._guard, self._disk():
            self._need_open()
            state = self._state
            stays = {state.current, state.previous, spare.digest if spare else None}
            may_go = [
                version for version in state.versions.values() if version.digest not in stays and not version.pinned
            ]
            may_go.sort(key=lambda version: (version.turn > 0, version.serial))
            surplus = len(state.versions) - (self._keep_versions if keep_versions is None else keep_versions)
            removed = may_go[: max(0, surplus)]
            gone = [self._retire(version) for version in removed]
        self._remove_trees(gone)
        return removed

    def remove(self, version: StoredVersion | str) -> None:
        """Remove one that is neither current nor previous; raises ValueError for those, VersionUnknown."""
        with self._guard, self._disk():
            self._need_open()
            kept, state = self.get(version), self._state
            if kept.digest in (state.current, state.previous):
                raise ValueError(f"version {kept.version} is current or previous: it stays")
            gone = self._retire(kept)
        self._remove_trees([gone])

    def _retire(self, version: StoredVersion) -> Path:
        """Take a version out of sight; its files are at the returned place still, to be removed without the guard."""
        gone = self._fresh(_REMOVING)
        failpoint("prune.before_rename")
        version.path.rename(gone)
        self._state = self._state.without_version(version.digest)
        failpoint("prune.after_rename")
        self._record_path(version.digest).unlink(missing_ok=True)
        sync_directory(self._versions_directory)
        failpoint("prune.after_sync")
        log.info("version %s (%s) is not kept any longer", version.version, version.source)
        return gone

    def _remove_trees(self, paths: Sequence[Path]) -> None:
        with self._disk():
            for path in paths:
                remove_tree(path)
            failpoint("prune.after_remove")

    # Reading the directory

    def _acquire(self) -> None:
        self._versions_directory.mkdir(parents=True, exist_ok=True)
        for directory in (self.directory, self._versions_directory):
            found = directory.stat()
            if found.st_uid != os.getuid():
                raise StoreUnavailable(
                    f"{directory} belongs to uid {found.st_uid}, this daemon runs as {os.getuid()}: "
                    "choose another --state-dir"
                )
            directory.chmod(0o700)
            sync_directory(directory.parent)
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StoreUnavailable(
                f"{self.directory} is used by another daemon: stop that, or choose another --state-dir"
            ) from error
        self._lock = descriptor

    def _sweep(self) -> None:
        for path in list(self._versions_directory.iterdir()):
            name = path.name
            if name.startswith((_INCOMING, _REMOVING)):
                log.info("%s was left by a daemon that did not end in peace: removed", path)
                remove_tree(path)
            elif name.endswith(".unfinished") or (name.endswith(".json") and not path.with_suffix("").is_dir()):
                path.unlink()
        (self.directory / ".current.unfinished").unlink(missing_ok=True)
        sync_directory(self._versions_directory)

    def _read_versions(self) -> _State:
        versions = {}
        for path in self._versions_directory.iterdir():
            if not _DIGEST.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
                continue
            path.chmod(0o500)
            record = self._record_path(path.name)
            try:
                version = StoredVersion.from_json(path.name, path, json.loads(record.read_bytes()))
            except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
                self._problem(f"what was known of version {path.name[:16]} is lost: {record}: {error}")
                version = StoredVersion.without_record(path.name, path)
            versions[path.name] = version
        return _State(versions)

    def _read_current(self, state: _State) -> _State:
        path = self.directory / "current"
        try:
            document = json.loads(path.read_bytes())
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r}, not {FORMAT}")
            state = replace(state, current=document["current"], previous=document["previous"])
            if not isinstance(state.current, str) or not isinstance(state.previous, str | None):
                raise TypeError("current and previous are digests")
        except FileNotFoundError:
            return _State(state.versions)
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            served = [version.digest for version in _by_turn(_State(state.versions))]
            self._problem(f"{path} cannot be read ({error}): the versions' records say what was served last")
            return _State(state.versions, *served[:2])
        if state.current not in state.versions:
            self._problem(f"the current version {shown(state.current[:VERSION_DIGITS])} is not kept here any more")
        return state

    # Parts

    def _check_files(self, version: StoredVersion) -> list[PackageFile]:
        """The files of a version as they are now; raises VersionDamaged unless they are what its name says."""
        _remove_caches(version.path)
        try:
            found = package_files(version.path)
        except ModelPackageError as error:
            raise VersionDamaged(f"version {version.version} is damaged: {error}") from error
        if content_digest(found) != version.digest:
            raise VersionDamaged(
                f"version {version.version} is damaged: {_difference(version, found)}; it is not served"
            )
        return found

    def _check_trust(self, files: Sequence[PackageFile], path: Path) -> None:
        signed = any(file.name == SIGNATURE for file in files)
        if self._trust.required or (signed and self._trust.keys):
            check_signature(files, _start_of(path / SIGNATURE) if signed else None, self._trust.keys)

    def _update(self, version: StoredVersion, steps: str) -> StoredVersion:
        self._need_open()
        self._write_record(version, steps)
        self._state = self._state.with_version(version)
        return version

    def _write_record(self, version: StoredVersion, steps: str) -> None:
        write_json(self._record_path(version.digest), version.to_json(), steps=steps)

    def _record_path(self, digest: str) -> Path:
        return self._versions_directory / f"{digest}.json"

    def _fresh(self, prefix: str) -> Path:
        return self._versions_directory / f"{prefix}{secrets.token_hex(8)}"

    def _need_open(self) -> None:
        if self._lock is None:
            raise StoreUnavailable(f"{self.directory} is closed")

    def _problem(self, text: str) -> None:
        log.error("%s", text)
        self.problems.append(text)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable:
            raise
        except OSError as error:
            if error.errno is None:  # raised by shmserve itself
                raise
            raise unavailable(error, f"{error.filename or self.directory}: {error.strerror}") from error


def _by_turn(state: _State) -> list[StoredVersion]:
    """What was ever current: the current one, the previous one, then the others, the last first."""
    others = sorted(state.versions.values(), key=lambda version: version.turn, reverse=True)
    order = dict.fromkeys([state.current, state.previous, *(version.digest for version in others if version.turn)])
    return [state.versions[digest] for digest in order if digest is not None and digest in state.versions]


def _remove_caches(path: Path) -> None:
    """Nothing writes a `__pycache__` here unless it means harm: Python would run that instead of what was checked."""
    for directory, names, _ in os.walk(path):
        if CACHE in names:
            names.remove(CACHE)
            log.warning("%s does not belong to the version: removed", Path(directory) / CACHE)
            os.chmod(directory, 0o700)
            remove_tree(Path(directory) / CACHE)
            os.chmod(directory, 0o500)


def _difference(version: StoredVersion, found: Sequence[PackageFile]) -> str:
    if version.files is None:
        return "its files are not those that were stored"
    stored = {file.name: file for file in version.files if file.name != SIGNATURE}
    present = {file.name: file for file in found if file.name != SIGNATURE}
    for name in sorted(stored.keys() | present.keys()):
        if name not in present:
            return f"{shown(name)} is missing"
        if name not in stored:
            return f"{shown(name)} was added"
        if stored[name] != present[name]:
            return f"{shown(name)} was changed"
    return "its files are not those that its name stands for"


def _path_of(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # asks the kernel, not the file system behind it
    except OSError:
        return "?"


def _start_of(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(SIGNATURE_BYTES + 1)
