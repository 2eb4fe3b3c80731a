"""Looks into a service's shared memory from another process, to prove what is memory of a slot and what is a copy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.daemon_process import Daemon

_PROGRAM = """
import mmap, sys
pattern, instead = (bytes.fromhex(text) for text in sys.argv[1:3])
replaced = 0
for path in sys.argv[3:]:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        place = memory.find(pattern)
        while place >= 0:
            memory[place : place + len(instead)] = instead
            replaced += 1
            place = memory.find(pattern, place + len(pattern))
print(replaced)
"""


def segments(daemon: Daemon) -> list[str]:
    """The segments of all channels, as files."""
    named = [f"/dev/shm/{name}" for name in daemon.names_in_shm() if not name.startswith("sem.")]
    if named:
        return named
    descriptors = Path(f"/proc/{daemon.pid}/fd")
    return [
        str(descriptors / entry)
        for entry in os.listdir(descriptors)
        if os.readlink(descriptors / entry).startswith("/memfd:shmserve")
    ]


def overwrite(daemon: Daemon, pattern: bytes, instead: bytes) -> int:
    """Let another process replace every `pattern` in the service's segments; how many it found."""
    assert len(pattern) == len(instead)
    found = subprocess.run(
        [sys.executable, "-c", _PROGRAM, pattern.hex(), instead.hex(), *segments(daemon)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(found.stdout)
