"""What a killed benchmark could not remove, removed by the next one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "shmserve-bench-"
PLACES = (Path("/dev/shm"), Path(tempfile.gettempdir()))


def my_prefix() -> str:
    """What the names of all files, folders and shared memory of this process begin with."""
    return f"{PREFIX}{os.getpid()}-"


def sweep() -> None:
    """Removes what belongs to processes that are no more."""
    for place in PLACES:
        for left in place.glob(f"{PREFIX}*-*"):
            pid = left.name.removeprefix(PREFIX).partition("-")[0]
            if pid.isdigit() and not Path("/proc", pid).exists():
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
