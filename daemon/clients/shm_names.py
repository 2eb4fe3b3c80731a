"""Names of a service's shared-memory objects: random, under a prefix that is swept at the start."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

_SHM = Path("/dev/shm")
_SEMAPHORE = "sem."


class NameRegistry:
    """Makes names that cannot be guessed, under a prefix that identifies the service and its directory."""

    def __init__(self, service_dir: Path) -> None:
        # Two services of one name in different directories must not sweep each other's objects.
        tag = hashlib.sha256(os.fsencode(service_dir.resolve())).hexdigest()[:12]
        self.prefix = f"shmserve.{tag}."

    def fresh(self) -> str:
        """Return a new name of 128 random bits, because /dev/shm is open to every user of the machine."""
        return f"/{self.prefix}{secrets.token_hex(16)}"

    def sweep(self) -> int:
        """Remove the objects that a killed daemon of this service left; return their number.

        The caller must hold the service's lock. An object that cannot be removed stays: as names are never reused,
        it does no harm.
        """
        removed = 0
        for entry in os.scandir(_SHM):
            if entry.name.removeprefix(_SEMAPHORE).startswith(self.prefix):
                try:
                    os.unlink(entry.path)
                except OSError:
                    continue
                removed += 1
        return removed
