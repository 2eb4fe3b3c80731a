"""A control group with a memory limit of its own, for processes of a test; needs root and a controller to write to."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from typing_extensions import Self

_MOUNTED = Path("/sys/fs/cgroup")


class NoMemoryGroup(Exception):
    """None can be made here, and why."""


@final
class MemoryGroup:
    """`with MemoryGroup(bytes) as group`: what is put there may take so much together. Leaving puts it back."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._path = _MOUNTED / f"shmserve-test-{os.getpid()}"

    def __enter__(self) -> Self:
        if not (_MOUNTED / "cgroup.controllers").exists():
            raise NoMemoryGroup(f"{_MOUNTED} is not a mount of control groups, version 2")
        try:
            self._path.mkdir()
            try:
                (self._path / "memory.max").write_text(str(self._limit_bytes))
            except OSError:
                self._path.rmdir()
                raise
        except OSError as error:
            raise NoMemoryGroup(f"a memory control group cannot be made in {_MOUNTED}: {error.strerror}") from error
        return self

    def add(self, pid: int) -> None:
        """From now on this process's new memory counts here, and that of the processes that it starts."""
        (self._path / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """Processes of it that the kernel has killed for their memory."""
        lines = (self._path / "memory.events").read_text().splitlines()
        return int(dict(map(str.split, lines))["oom_kill"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in (self._path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (_MOUNTED / "cgroup.procs").write_text(pid)
        self._path.rmdir()
