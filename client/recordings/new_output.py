"""New file or directory that has its name only once it is complete."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import final

from .errors import RecordingError


@final
class NewOutput:
    """A place beside `path` to write to; `commit` gives it its name. A process that is killed leaves no half of it there.

    The place is in a directory `.NAME.part`, locked while its process lives. One that a killed process left is removed by
    the next process that writes to the same name.
    """

    def __init__(self, path: Path, *, force: bool, replaces: str | None = None) -> None:
        """`force` replaces what is there: a file, or a directory that holds the file `replaces`."""
        self._target = path
        self._force = force
        self._replaces = replaces
        self._part = path.parent / f".{path.name}.part"
        self._descriptor = -1
        self._replaced = self._part / "replaced"
        self.path = self._part / "new" / path.name

    def __enter__(self) -> NewOutput:
        """Raises RecordingError where `path` exists or another process writes to it, or OSError."""
        if not self._target.parent.is_dir():
            raise RecordingError(
                f"{self._target.parent}, in which {self._target.name} is to be made, is not a directory"
            )
        self._part.mkdir(mode=0o700, exist_ok=True)
        self._descriptor = os.open(self._part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            self._descriptor = -1
            raise RecordingError(f"another process is writing {self._target} (it has {self._part} locked)") from None
        try:
            if self._replaced.exists() and not os.path.lexists(self._target):
                os.rename(self._replaced, self._target)  # a process was killed between the two names
            self._check_target()
            shutil.rmtree(self.path.parent, ignore_errors=True)
            self.path.parent.mkdir()
        except BaseException:
            self._close()
            raise
        return self

    def _check_target(self) -> None:
        if not os.path.lexists(self._target):
            return
        if not self._force:
            raise RecordingError(f"{self._target} exists: choose another name, or replace it with --force")
        if self._replaces is None:
            if not self._target.is_file():
                raise RecordingError(f"{self._target} is not a file, and --force replaces files alone: remove it first")
        elif not self._target.is_dir() or self._target.is_symlink() or not (self._target / self._replaces).is_file():
            raise RecordingError(f"{self._target} is not such a dataset (no {self._replaces}), and stays as it is")

    def commit(self) -> None:
        """Write what is buffered to the disk, and give the output its name."""
        self._check_target()
        for file in [self.path] if self.path.is_file() else self.path.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        if self._replaces is not None and os.path.lexists(self._target):
            os.rename(self._target, self._replaced)
        os.rename(self.path, self._target)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            shutil.rmtree(self._part, ignore_errors=True)
            os.close(self._descriptor)
            self._descriptor = -1
