"""Finds what clients of transport `named` did to objects that they may open, without mapping any of them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from shmserve.doorbell import create_doorbell, exists_doorbell, unlink_doorbell

from .leases import Lease

_SHM = Path("/dev/shm")
#: A semaphore's file begins with its value and how many wait, in one word; nothing after that ever changes.
_MOVING_BYTES = 8
_LARGEST = 4096


class IntegrityCheck:
    """`open` once; then `of_lease` and `of_bell` say what is wrong with an object that an engine died of."""

    def __init__(self) -> None:
        self._untouched = b""

    def open(self) -> None:
        """Look at a semaphore that nobody else can know. Raises OSError."""
        name = f"/shmserve.probe.{secrets.token_hex(16)}"
        create_doorbell(name)
        try:
            self._untouched = _content(_bell(name))
        finally:
            unlink_doorbell(name)

    def of_lease(self, lease: Lease) -> str | None:
        """What was done to a channel's objects, as the end of a sentence; None: nothing that shows.

        Removed ones are nobody's doing here: only the daemon's own user may, and no engine dies of it. The next one
        says that it cannot open them, and the client attaches again.
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
        try:
            content = _content(_bell(name))
        except FileNotFoundError:
            return "its doorbell was removed"
        if len(content) < len(self._untouched):
            return "its doorbell was truncated"
        if content[_MOVING_BYTES:] != self._untouched[_MOVING_BYTES:]:
            return "its doorbell was written over"
        return None


def _bell(name: str) -> Path:
    return _SHM / f"sem.{name.removeprefix('/')}"


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.pread(descriptor, _LARGEST, 0)
    finally:
        os.close(descriptor)
