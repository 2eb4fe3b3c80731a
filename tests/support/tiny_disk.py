"""A file system of 4 MiB for a test. What a killed test could not unmount, the next one that mounts does."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

#: What the mounts of this process are said to be of.
_PREFIX = "shmserve-test-"


@contextlib.contextmanager
def tiny_disk(path: Path) -> Iterator[None]:
    """A tmpfs mounted there while the block runs; skips the test where none can be mounted."""
    sweep()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", f"{_PREFIX}{os.getpid()}", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        # A process that is about to end may have it open still.
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def sweep() -> None:
    """Unmount what belongs to processes that are no more."""
    for source, path in mounts():
        pid = source.removeprefix(_PREFIX)
        if source.startswith(_PREFIX) and pid.isdigit() and not Path("/proc", pid).exists():
            subprocess.run(["umount", "--lazy", str(path)], check=False)


def mounts() -> Iterator[tuple[str, Path]]:
    """What is mounted, and where."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, path = line.split()[:2]
        yield source, Path(path.encode().decode("unicode_escape"))  # a blank is written \040
