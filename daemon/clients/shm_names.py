"""The names of a service's shared-memory objects: random, its own prefix, swept at the start."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

_SHM = Path("/dev/shm")
_SEMAPHORE = "sem."


class NameRegistry:
    """Makes names that nobody can guess, under a prefix that says which service in which directory owns them."""

    def __init__(self, service_dir: Path) -> None:
        # Two services of one name in different directories must not sweep each other's objects.
        tag = hashlib.sha256(os.fsencode(service_dir.resolve())).hexdigest()[:12]
        self.prefix = f"shmserve.{tag}."

    def fresh(self) -> str:
        """A new name; 128 random bits, because /dev/shm is open to every user of the machine."""
        return f"/{self.prefix}{secrets.token_hex(16)}"

    def sweep(self) -> int:
        """Remove what a killed daemon of this service left; returns how many objects.

        Only for the holder of the service's lock. An object that cannot be removed is left: names are
        never used twice, so it is in nobody's way.
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
