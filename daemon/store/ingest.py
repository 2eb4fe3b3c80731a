"""Ingest of a package from a sender's descriptor into a new directory, in a worker process with limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from shmserve.package_files import PackageFile, content_digest

from .atomic_files import remove_tree
from .errors import ArchiveRefused, StoreUnavailable, unavailable
from .kept_files import KeptFile
from .limits import PackageLimits
from .overlapped_copy import write_all

log = logging.getLogger(__name__)

_T = TypeVar("_T")
#: How long to wait for a killed process to end; one that hangs in a file system of the kernel takes longer.
_KILL_S = 5.0


@dataclass(frozen=True)
class BytesIngested:
    """Progress of an ingest: bytes read of the source, its total (None if not known), files written."""

    read_bytes: int
    total_bytes: int | None
    files: int


@dataclass(frozen=True)
class IngestedPackage:
    """A package on disk, synced, that only this user can write to. `path` is `staging` or the one folder in it."""

    staging: Path
    path: Path
    files: tuple[PackageFile, ...]

    @property
    def digest(self) -> str:
        return content_digest(self.files)


#: `ingest`, or a function that tests use in its place, which starts no process.
Ingest = Callable[
    [int, Path, "PackageLimits | None", "Callable[[BytesIngested], None] | None", Sequence[KeptFile]],
    Awaitable[IngestedPackage],
]


class IngestEvents:
    """Events of the worker that ingests one package; `root` is None until the last one."""

    def __init__(self, progress: Callable[[BytesIngested], None] | None = None) -> None:
        self._progress = progress
        self._files: list[PackageFile] = []
        self.root: str | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Handle one event; raise ArchiveRefused or StoreUnavailable if it reports one."""
        match event["event"]:
            case "progress":
                if self._progress is not None:
                    self._progress(BytesIngested(event["read"], event["total"], event["files"]))
            case "file":
                self._files.append(PackageFile(event["name"], event["size"], event["sha256"]))
            case "done":
                self.root = event["root"]
            case "refused":
                raise ArchiveRefused(event["reason"])
            case "failed":
                raise unavailable(OSError(event["errno"], ""), event["reason"])

    @property
    def files(self) -> tuple[PackageFile, ...]:
        """The files, named within `root`."""
        prefix = self.root + "/" if self.root else ""
        return tuple(PackageFile(file.name[len(prefix) :], file.size, file.sha256) for file in self._files)


async def ingest(
    source: int,
    staging: Path,
    limits: PackageLimits | None = None,
    progress: Callable[[BytesIngested], None] | None = None,
    kept: Sequence[KeptFile] = (),
) -> IngestedPackage:
    """Copy the package in `source`, an open directory or tar file, into the new directory `staging`.

    A file whose content one of the `kept` files has is shared with it, not written.
    Raises ArchiveRefused, or StoreUnavailable if the state directory cannot be written; then, and when cancelled, the
    worker has ended and `staging` is gone. The descriptor stays the caller's. Only the worker uses it: on a FUSE mount
    even fstat may block for ever.
    """
    limits = limits or PackageLimits()
    process: asyncio.subprocess.Process | None = None
    try:
        try:
            staging.mkdir(mode=0o700)
            target = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise unavailable(error, f"{staging}: {error.strerror}") from error
        try:
            process = await _start(source, target, limits, kept)
        except OSError as error:
            raise StoreUnavailable(f"no process can be started to read the package: {error.strerror}") from error
        finally:
            os.close(target)
        try:
            files, root = await asyncio.wait_for(_follow(process, limits, progress), limits.wall_s)
        except asyncio.TimeoutError:
            raise ArchiveRefused(f"receiving the package took longer than {limits.wall_s:g} s") from None
        return IngestedPackage(staging, staging / root, files)
    except BaseException:
        await undisturbed(_abandon(process, staging))
        raise


async def undisturbed(work: Awaitable[_T]) -> _T:
    """Return the result of `work`, which runs to its end even if the caller is cancelled."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as interruption:  # wait() leaves the task alone
            cancelled = interruption
    if cancelled is None:
        return task.result()
    if (error := task.exception()) is not None:
        log.warning("cancelled work of the store failed: %s", error)
    raise cancelled


async def _start(
    source: int, target: int, limits: PackageLimits, kept: Sequence[KeptFile]
) -> asyncio.subprocess.Process:
    request = _request(limits, kept)
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "shmserve.daemon.store.ingest_worker",
            str(source),
            str(target),
            pass_fds=(source, target),
            stdin=request,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1", "MALLOC_ARENA_MAX": "1"},
            cwd="/",  # before Python 3.11 the working directory leads sys.path
        )
    finally:
        os.close(request)


def _request(limits: PackageLimits, kept: Sequence[KeptFile]) -> int:
    """Return a file in memory with the worker's standard input: a pipe, or an argument, may be too short for it."""
    descriptor = os.memfd_create("ingest-request")
    content = json.dumps({"limits": asdict(limits), "kept": [asdict(file) for file in kept]}).encode()
    try:
        write_all(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


async def _follow(
    process: asyncio.subprocess.Process, limits: PackageLimits, progress: Callable[[BytesIngested], None] | None
) -> tuple[tuple[PackageFile, ...], str]:
    """Read the worker's events until it ends; return the files, and the folder that holds them."""
    assert process.stdout is not None
    events = IngestEvents(progress)
    async for line in process.stdout:
        events.take(json.loads(line))
    status = await process.wait()
    if events.root is None:
        raise ArchiveRefused(_death(status, limits))
    return events.files, events.root


def _death(status: int, limits: PackageLimits) -> str:
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return (
            f"the process that reads the package was killed ({signal.Signals(-status).name}): "
            f"it took more than {limits.cpu_s} s of processor time, or the machine has no memory left"
        )
    how = f"by signal {-status}" if status < 0 else f"with exit status {status}"
    return f"the process that reads the package ended {how}; the daemon's log may say why"


async def _abandon(process: asyncio.subprocess.Process | None, staging: Path) -> None:
    if process is not None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        try:
            await asyncio.wait_for(process.wait(), _KILL_S)
        except asyncio.TimeoutError:
            log.warning("process %d, which reads a package, hangs in the kernel: left alone", process.pid)
    await asyncio.to_thread(remove_tree, staging)
