"""Private folder under the temporary directory: removed at the end of its block, or by the next one's sweep."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import final


@final
class PrivateFolder:
    """Locked while a process has its `descriptor`; a folder without a lock is swept."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.path: Path | None = None
        #: For the processes that use the folder: `pass_fds`.
        self.descriptor = -1

    def __enter__(self) -> PrivateFolder:
        self._sweep()
        while self.path is None:
            path = Path(tempfile.mkdtemp(prefix=self._prefix))
            descriptor = _locked(path)
            if descriptor is not None:  # else another process swept it between the two lines
                self.path, self.descriptor = path, descriptor
        return self

    def _sweep(self) -> None:
        for path in Path(tempfile.gettempdir()).glob(f"{self._prefix}*"):
            if not path.is_symlink() and path.is_dir() and path.stat().st_uid == os.getuid():
                descriptor = _locked(path)
                if descriptor is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(descriptor)

    def close(self) -> None:
        """May be called twice."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self.descriptor)
            self.path, self.descriptor = None, -1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _locked(path: Path) -> int | None:
    """Open and lock the directory; return its descriptor, or None if another process has the lock or the directory is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.lexists(path):
            return descriptor
    os.close(descriptor)
    return None
