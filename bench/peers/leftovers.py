"""Removal of files and objects left by a killed benchmark, at the start of the next one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "shmserve-bench-"
PLACES = (Path("/dev/shm"), Path(tempfile.gettempdir()))


def my_prefix() -> str:
    """Return the prefix of the names of all files, folders and shared memory of this process."""
    return f"{PREFIX}{os.getpid()}-"


def sweep() -> None:
    """Remove the files and objects of processes that have ended."""
    for place in PLACES:
        for left in place.glob(f"{PREFIX}*-*"):
            pid = left.name.removeprefix(PREFIX).partition("-")[0]
            if pid.isdigit() and not Path("/proc", pid).exists():
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
