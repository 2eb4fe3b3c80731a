"""The service's directory, held by one daemon at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from .directories import check_unchangeable, make_directories


class AlreadyRunning(Exception):
    """Another daemon serves this name in this directory."""


class ServiceLock:
    """A lock that the holder's death releases."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor: int | None = None

    def acquire(self, mode: int) -> None:
        """Make the directory, with exactly this mode, and lock it.

        Raises AlreadyRunning naming the other daemon, or OSError.
        """
        if self._directory.parent.exists():
            check_unchangeable(self._directory.parent)  # before a directory is made in it
        make_directories(self._directory)
        found = self._directory.stat()
        if found.st_uid != os.getuid():
            raise PermissionError(f"{self._directory} belongs to uid {found.st_uid}: choose another --runtime-dir")
        check_unchangeable(self._directory.parent)
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise AlreadyRunning(
                f"service {self._directory.name!r} in {self._directory.parent} is already served by pid "
                f"{holder or 'unknown'}: stop that daemon, or choose another --name or --runtime-dir"
            ) from error
        self._directory.chmod(mode)  # not before the lock: it may be another daemon's
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock; the file stays, because removing it would let two daemons hold locks of one name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
