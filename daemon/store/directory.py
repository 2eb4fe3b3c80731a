"""The store's directory: its lock, its records, and the renames that add and remove a version.

    <state directory>/<service>/models/
      lock                        held by the one daemon that uses this directory
      current                     the digests of the served and the previous version; replaced by rename
      versions/<digest>/          a package, read-only; the digest of its content is its name
      versions/<digest>.json      the version's record: its metadata
      versions/incoming-<random>  a package during its ingest
      versions/removing-<random>  a version during its removal

A version exists once its directory has its final name; its record was written before, and its bytes were on the disk
before that. If the daemon is killed at any moment, `sweep` and `read` find the old state or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from shmserve.package_files import SIGNATURE, VERSION_DIGITS, shown

from ..failpoints import failpoint
from ..host.directories import check_unchangeable, make_directories
from .atomic_files import remove_tree, sync_directory, write_json
from .errors import StoreUnavailable, unavailable
from .index import Index
from .stored_version import FORMAT, StoredVersion

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_INCOMING = "incoming-"
_REMOVING = "removing-"


class StoreDirectory:
    """The directory, used between `acquire` and `release`; every method blocks for the disk and may raise OSError."""

    def __init__(self, path: Path, on_problem: Callable[[str], None]) -> None:
        """Remember the path; `on_problem` is called with a text for each problem that is found."""
        self.path = path
        self._versions = path / "versions"
        self._on_problem = on_problem
        self._lock: int | None = None

    # Life

    def acquire(self) -> None:
        """Create and lock the directory; raise StoreUnavailable if another user or daemon owns it."""
        make_directories(self._versions)
        try:
            check_unchangeable(self.path.parent)
        except PermissionError as error:
            raise StoreUnavailable(str(error)) from error
        above = self.path.parent.parent.lstat()
        if above.st_uid not in (0, os.getuid()):  # its owner can rename the directory just checked
            raise StoreUnavailable(
                f"{self.path.parent.parent} belongs to uid {above.st_uid}, this daemon runs as {os.getuid()}: "
                "choose another --state-dir"
            )
        for directory in (self.path, self._versions):
            found = directory.stat()
            if found.st_uid != os.getuid():
                raise StoreUnavailable(
                    f"{directory} belongs to uid {found.st_uid}, this daemon runs as {os.getuid()}: "
                    "choose another --state-dir"
                )
            directory.chmod(0o700)
            sync_directory(directory.parent)
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StoreUnavailable(
                f"{self.path} is used by another daemon: stop that, or choose another --state-dir"
            ) from error
        self._lock = descriptor

    def release(self) -> None:
        """Release the lock; may be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def is_acquired(self) -> bool:
        return self._lock is not None

    def need(self) -> None:
        """Raise StoreUnavailable unless this daemon holds the lock."""
        if not self.is_acquired:
            raise StoreUnavailable(f"{self.path} is closed")

    # Reading

    def sweep(self) -> None:
        """Remove the unfinished files and directories of a killed daemon."""
        for path in list(self._versions.iterdir()):
            name = path.name
            if name.startswith((_INCOMING, _REMOVING)):
                log.info("%s was left by a daemon that was killed: removed", path)
                remove_tree(path)
            elif name.endswith(".unfinished") or (name.endswith(".json") and not path.with_suffix("").is_dir()):
                path.unlink()
        (self.path / ".current.unfinished").unlink(missing_ok=True)
        sync_directory(self._versions)

    def read(self) -> Index:
        """Read the index: the kept versions and the current one."""
        return self._read_current(self._read_versions())

    def _read_versions(self) -> Index:
        versions = {}
        for path in self._versions.iterdir():
            if not _DIGEST.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
                continue
            path.chmod(0o500)
            record = self._record_path(path.name)
            try:
                version = StoredVersion.from_json(path.name, path, json.loads(record.read_bytes()))
            except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
                self._on_problem(f"the record of version {path.name[:16]} is lost: {record}: {error}")
                version = StoredVersion.without_record(path.name, path)
            versions[path.name] = version
        return Index(versions)

    def _read_current(self, index: Index) -> Index:
        path = self.path / "current"
        try:
            document = json.loads(path.read_bytes())
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r}, not {FORMAT}")
            index = replace(
                index, current=document["current"], previous=document["previous"], release=int(document["release"])
            )
            if not isinstance(index.current, str) or not isinstance(index.previous, str | None):
                raise TypeError("current and previous are digests")
        except FileNotFoundError:
            return Index(index.versions)
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            served = Index(index.versions).by_activation()
            self._on_problem(f"{path} cannot be read ({error}): the versions' records show which was served last")
            current, previous, *_ = [*(version.digest for version in served), None, None]
            return Index(index.versions, current, previous, max((version.release for version in served), default=0))
        if index.current not in index.versions:
            self._on_problem(f"the current version {shown(index.current[:VERSION_DIGITS])} is no longer kept here")
        return index

    # Writing

    def write_record(self, version: StoredVersion, steps: str) -> None:
        """Write a version's record; `steps` is the prefix of the failpoints' names."""
        write_json(self._record_path(version.digest), version.to_json(), steps=steps)

    def write_current(self, index: Index) -> None:
        """Write the current and the previous version of `index`."""
        write_json(
            self.path / "current",
            {
                "format": FORMAT,
                "current": index.current,
                "previous": index.previous,
                "release": index.release,
                "since_s": time.time(),
            },
            steps="current",
        )

    def path_of(self, digest: str) -> Path:
        return self._versions / digest

    def fresh_incoming(self) -> Path:
        """Return an unused path for the next package to be ingested."""
        return self._fresh(_INCOMING)

    def place(self, received: Path, version: StoredVersion) -> Path | None:
        """Make an ingested package a version; the last rename commits it.

        Returns the new path of a damaged version that was in its place, for the caller to remove, or None.
        """
        damaged: Path | None = None
        self.write_record(version, "store.record")
        if version.path.exists():
            damaged = self._fresh(_REMOVING)
            version.path.rename(damaged)
        failpoint("store.before_rename")
        received.rename(version.path)
        failpoint("store.after_rename")
        sync_directory(self._versions)
        failpoint("store.after_sync")
        version.path.chmod(0o500)
        return damaged

    def renew_signature(self, received: Path, version: StoredVersion) -> None:
        """Replace a version's signature by that of the same package sent again: the digest does not cover it."""
        sent, kept = received / SIGNATURE, version.path / SIGNATURE
        if not sent.exists() or (kept.exists() and sent.read_bytes() == kept.read_bytes()):
            return
        version.path.chmod(0o700)
        failpoint("store.before_signature")
        sent.replace(kept)
        failpoint("store.after_signature")
        sync_directory(version.path)
        version.path.chmod(0o500)

    def retire(self, version: StoredVersion) -> Path:
        """Rename a version out of its place; return the path of its files, for the caller to remove."""
        gone = self._fresh(_REMOVING)
        failpoint("prune.before_rename")
        version.path.rename(gone)
        return gone

    def forget(self, version: StoredVersion) -> None:
        """Remove the record of a retired version."""
        failpoint("prune.after_rename")
        self._record_path(version.digest).unlink(missing_ok=True)
        sync_directory(self._versions)
        failpoint("prune.after_sync")
        log.info("version %s (%s) was removed", version.version, version.source)

    def remove_trees(self, paths: Sequence[Path]) -> None:
        """Remove the files of retired versions."""
        with self.disk():
            for path in paths:
                remove_tree(path)
            failpoint("prune.after_remove")

    @contextlib.contextmanager
    def disk(self) -> Iterator[None]:
        """Raise the disk's errors in the block as StoreUnavailable."""
        try:
            yield
        except StoreUnavailable:
            raise
        except OSError as error:
            if error.errno is None:  # raised by shmserve itself
                raise
            raise unavailable(error, f"{error.filename or self.path}: {error.strerror}") from error

    def _record_path(self, digest: str) -> Path:
        return self._versions / f"{digest}.json"

    def _fresh(self, prefix: str) -> Path:
        return self._versions / f"{prefix}{secrets.token_hex(8)}"
