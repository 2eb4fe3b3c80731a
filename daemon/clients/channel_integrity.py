"""Integrity check of shared objects that clients of transport `named` may write to. It maps none of them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from shmserve.doorbell import create_doorbell, exists_doorbell, unlink_doorbell

from .leases import Lease

_SHM = Path("/dev/shm")
#: A semaphore's file begins with its value and the number of waiters, in one word; the rest is constant.
_VARIABLE_BYTES = 8
_MAX_BYTES = 4096


class IntegrityCheck:
    """Call `open` once; then `of_lease` and `of_bell` describe the damage to an object that an engine died of."""

    def __init__(self) -> None:
        self._untouched = b""

    def open(self) -> None:
        """Read a semaphore with a name that no other process knows, for comparison. Raises OSError."""
        name = f"/shmserve.probe.{secrets.token_hex(16)}"
        create_doorbell(name)
        try:
            self._untouched = _content(_bell(name))
        finally:
            unlink_doorbell(name)

    def of_lease(self, lease: Lease) -> str | None:
        """Describe the damage to a channel's objects as a clause, or return None.

        Removed objects are not held against the client: only the daemon's own user can remove them, and no engine dies
        of it. The next engine reports that it cannot open them, and the client attaches again.
        """
        names = lease.channel_info.names
        if names is None:
            return None
        try:
            size = sum((_SHM / name.removeprefix("/")).stat().st_size for name in (names.requests, names.replies))
        except FileNotFoundError:
            return None
        if size < lease.bytes:
            return "its shared memory was truncated"
        return self.of_bell(names.reply_bell) if exists_doorbell(names.reply_bell) else None

    def of_bell(self, name: str) -> str | None:
        """Describe the damage to a doorbell as a clause, or return None."""
        try:
            content = _content(_bell(name))
        except FileNotFoundError:
            return "its doorbell was removed"
        if len(content) < len(self._untouched):
            return "its doorbell was truncated"
        if content[_VARIABLE_BYTES:] != self._untouched[_VARIABLE_BYTES:]:
            return "its doorbell was written over"
        return None


def _bell(name: str) -> Path:
    return _SHM / f"sem.{name.removeprefix('/')}"


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.pread(descriptor, _MAX_BYTES, 0)
    finally:
        os.close(descriptor)
