"""The store's directory: its lock, the records in it, and the renames by which a version comes and goes.

    <state directory>/<service>/models/
      lock                        held by the one daemon that uses this directory
      current                     which version is served and which was before: one small file, replaced by rename
      versions/<digest>/          a package, read-only; the digest of its content is its name
      versions/<digest>.json      what is known of it
      versions/incoming-<random>  on its way in
      versions/removing-<random>  on its way out

A version exists once its directory has its final name; its record was written before, and its bytes were on the disk
before that. Whatever moment the daemon is killed at, `sweep` and `read` find the old state or the new one.
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
    """`acquire`, then anything, then `release`. Everything blocks while the disk works, and may raise OSError."""

    def __init__(self, path: Path, on_problem: Callable[[str], None]) -> None:
        """`on_problem` hears what is found wrong, for people."""
        self.path = path
        self._versions = path / "versions"
        self._on_problem = on_problem
        self._lock: int | None = None

    # Life

    def acquire(self) -> None:
        """Make it this daemon's own; raises StoreUnavailable if it is somebody else's."""
        make_directories(self._versions)
        try:
            check_unchangeable(self.path.parent)
        except PermissionError as error:
            raise StoreUnavailable(str(error)) from error
        above = self.path.parent.parent.lstat()
        if above.st_uid not in (0, os.getuid()):  # who owns it can rename the directory that was just looked at
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
        """Let it go; may be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def need(self) -> None:
        """Raises StoreUnavailable unless it is this daemon's."""
        if self._lock is None:
            raise StoreUnavailable(f"{self.path} is closed")

    # Reading

    def sweep(self) -> None:
        """Remove what a killed daemon left half done."""
        for path in list(self._versions.iterdir()):
            name = path.name
            if name.startswith((_INCOMING, _REMOVING)):
                log.info("%s was left by a daemon that did not end in peace: removed", path)
                remove_tree(path)
            elif name.endswith(".unfinished") or (name.endswith(".json") and not path.with_suffix("").is_dir()):
                path.unlink()
        (self.path / ".current.unfinished").unlink(missing_ok=True)
        sync_directory(self._versions)

    def read(self) -> Index:
        """What is kept here, and which is current."""
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
                self._on_problem(f"what was known of version {path.name[:16]} is lost: {record}: {error}")
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
            self._on_problem(f"{path} cannot be read ({error}): the versions' records say what was served last")
            current, previous, *_ = [*(version.digest for version in served), None, None]
            return Index(index.versions, current, previous, max((version.release for version in served), default=0))
        if index.current not in index.versions:
            self._on_problem(f"the current version {shown(index.current[:VERSION_DIGITS])} is not kept here any more")
        return index

    # Writing

    def write_record(self, version: StoredVersion, steps: str) -> None:
        """Remember what is known of a version; `steps` begins the names of the failpoints on the way."""
        write_json(self._record_path(version.digest), version.to_json(), steps=steps)

    def write_current(self, index: Index) -> None:
        """From now on these are the version that is served and the one before."""
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
        """Where the next package may be received."""
        return self._fresh(_INCOMING)

    def place(self, received: Path, version: StoredVersion) -> Path | None:
        """Make a received package a version; the moment is the second rename.

        Returns where the damaged one is that was in its place, to be removed; None if there was none.
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
        """The same files may come with the signature of another key; the signature is no part of the content."""
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
        """Take a version out of its place; its files are at the returned one still, to be removed."""
        gone = self._fresh(_REMOVING)
        failpoint("prune.before_rename")
        version.path.rename(gone)
        return gone

    def forget(self, version: StoredVersion) -> None:
        """Remove what is known of a version that was retired."""
        failpoint("prune.after_rename")
        self._record_path(version.digest).unlink(missing_ok=True)
        sync_directory(self._versions)
        failpoint("prune.after_sync")
        log.info("version %s (%s) is not kept any longer", version.version, version.source)

    def remove_trees(self, paths: Sequence[Path]) -> None:
        """Remove what was retired."""
        with self.disk():
            for path in paths:
                remove_tree(path)
            failpoint("prune.after_remove")

    @contextlib.contextmanager
    def disk(self) -> Iterator[None]:
        """The disk's errors in here are raised as StoreUnavailable."""
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
