"""Ingest worker: a process with limits that copies one package from a sender's descriptor.

    python -m shmserve.daemon.store.ingest_worker SOURCE_FD TARGET_FD

SOURCE_FD is a directory or a regular file with a tar, TARGET_FD a new directory. Standard input is a file with one JSON
object: `limits`, the fields of PackageLimits, and `kept`, a list of the fields of KeptFile. Only this process touches
the source, even for fstat: on a FUSE mount any call may hang or lie. It writes events to standard output, one JSON
object a line:

    {"event": "progress", "read": 4194304, "total": 9000000, "files": 2}   total null: not known
    {"event": "file", "name": "policy.py", "size": 312, "sha256": "..."}   one for each file, once all are on the disk
    {"event": "done", "root": "model"}                                     root: the folder that holds the package, or ""
    {"event": "refused", "reason": "..."}                                  a fault of the package
    {"event": "failed", "reason": "...", "errno": 28}                      a fault of the state directory
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from shmserve.errors import ModelPackageError
from shmserve.package_files import OpenFile, is_apple_double, is_left_out, may_be_apple_double, open_files, read_chunks

from .byte_source import FileSource, open_archive
from .errors import ArchiveRefused
from .kept_files import KeptFile, KeptFiles
from .limits import PackageLimits
from .package_writer import PackageWriter
from .tar_reader import TarReader

_REPORT_S = 0.1
#: A package larger than this is copied with a lower priority, so that it takes no CPU time from requests.
_LARGE_BYTES = 64 << 20
_DESCRIPTORS = 64
#: First bytes of a file that identify it; gzip may return them one by one.
_START_BYTES = 8

Say = Callable[[dict[str, Any]], None]


class IngestWorker:
    """Copies one package from `source` to `target`; calls `say` with each event as a dict."""

    def __init__(self, source: int, target: int, limits: PackageLimits, kept: KeptFiles, say: Say) -> None:
        self._source = source
        self._limits = limits
        self._say = say
        self._writer = PackageWriter(target, limits, self._on_bytes, kept)
        self._read = 0
        self._total: int | None = None
        self._reads_archive = False
        self._reported_s = 0.0
        self._is_nice = False

    def run(self) -> None:
        """Copy, or raise ModelPackageError, MemoryError, or the OSError of the target."""
        mode = os.fstat(self._source).st_mode
        root = ""
        if stat.S_ISDIR(mode):
            self._copy_directory()
        elif stat.S_ISREG(mode):
            self._copy_archive()
            root = self._folder()
        else:
            raise ArchiveRefused("the source is neither a directory nor a regular file with a tar")
        if not self._writer.files:
            raise ArchiveRefused("the package contains no files")
        self._reported_s = 0.0  # the whole package, before the disk is waited for
        self._report()
        self._writer.sync(movable=root)
        for file in self._writer.files.values():
            self._say({"event": "file", **asdict(file)})
        self._say({"event": "done", "root": root})

    def _copy_directory(self) -> None:
        self._total = sum(file.found.st_size for file in open_files(self._source, entries=self._limits.members))
        self._report()
        before = []
        for file in open_files(self._source, entries=self._limits.members):
            self._writer.add(file.name, file.found.st_size, read_chunks(file), file.descriptor)
            before.append(_identity(file))
        # If complete files are replaced meanwhile, the copy may be a mixture of two packages.
        if before != [_identity(file) for file in open_files(self._source, entries=self._limits.members)]:
            raise ArchiveRefused("the directory was changed while it was received: send it again once it is written")

    def _copy_archive(self) -> None:
        source = FileSource(self._source, self._on_position)
        self._total, self._reads_archive = source.size, True
        self._report()
        reader = TarReader(open_archive(source, self._limits), members=self._limits.members)
        for header in reader:
            if is_left_out(header.name):
                continue
            if header.is_directory:
                self._writer.expect_directory(header.name)
                continue
            chunks: Iterable[bytes] = reader.chunks()
            if may_be_apple_double(header.name):
                start, chunks = _with_start(chunks)
                if is_apple_double(start):
                    continue  # the reader skips the rest
            self._writer.add(header.name, header.size, chunks)
        source.check_unchanged()

    def _folder(self) -> str:
        """Return the one folder that holds all files, as in a tar of `model/`, which is then the package, or ""."""
        folders = {name.partition("/")[0] if "/" in name else "" for name in self._writer.files}
        return folders.pop() if len(folders) == 1 else ""

    def _on_position(self, position: int) -> None:
        self._read = position
        self._report()

    def _on_bytes(self, count: int) -> None:
        if not self._reads_archive:
            self._read += count
            self._report()
        if not self._is_nice and self._read > _LARGE_BYTES:
            self._is_nice = True
            os.nice(5)

    def _report(self) -> None:
        now_s = time.monotonic()
        if now_s - self._reported_s >= _REPORT_S:
            self._reported_s = now_s
            files = len(self._writer.files)
            self._say({"event": "progress", "read": self._read, "total": self._total, "files": files})


def _with_start(chunks: Iterable[bytes]) -> tuple[bytes, Iterable[bytes]]:
    """Return the first bytes, and an iterator over all chunks including them."""
    rest, start = iter(chunks), b""
    while len(start) < _START_BYTES and (chunk := next(rest, b"")):
        start += chunk
    return start, itertools.chain((start,), rest)


def _identity(file: OpenFile) -> tuple[str, int, int, int]:
    return file.name, file.found.st_ino, file.found.st_size, file.found.st_mtime_ns


def copy_package(source: int, target: int, limits: PackageLimits, kept: Sequence[KeptFile], say: Say) -> None:
    """Copy the package and report the outcome as the last event; raises only exceptions of `say`."""
    try:
        IngestWorker(source, target, limits, KeptFiles(kept), say).run()
    except ModelPackageError as error:
        say({"event": "refused", "reason": str(error)})
    except MemoryError:
        say(
            {"event": "refused", "reason": f"the package takes more than {limits.memory_bytes} bytes of memory to read"}
        )
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        say({"event": "failed", "reason": str(error.strerror or error), "errno": error.errno})


def _write(event: dict[str, Any]) -> None:
    line = json.dumps(event).encode() + b"\n"
    while line:
        line = line[os.write(1, line) :]


def _confine(limits: PackageLimits) -> None:
    os.umask(0o077)
    # The supervisor enforces the same limit; this timer ends the process if the supervisor has died.
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s + 1)
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_FSIZE, limits.total_bytes),
        (resource.RLIMIT_AS, limits.memory_bytes),
    ):
        _, hard = resource.getrlimit(kind)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))
    # The soft limit sends SIGXCPU, which shows the reason; the hard limit sends a bare SIGKILL.
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 1))


def main() -> int:
    """Run the worker; return 0 once a last event was written, whatever the outcome."""
    source, target, request = int(sys.argv[1]), int(sys.argv[2]), json.load(sys.stdin)
    limits, kept = PackageLimits(**request["limits"]), [KeptFile(**file) for file in request["kept"]]
    _confine(limits)
    with contextlib.suppress(BrokenPipeError):  # the supervisor no longer waits for this package
        copy_package(source, target, limits, kept, _write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
