"""Copying of a file in one pass with three threads, which read, hash and write; hashing beside the reading."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator

#: Most pieces that were read and are not yet hashed and written: 8 MiB.
_AHEAD = 8
#: Bytes after which write-back starts, so that the disk works before the last byte has come.
_FLUSH_BYTES = 8 << 20
_PIECE_BYTES = 1 << 20
#: A smaller file is copied before a thread would have started.
OVERLAPPED_BYTES = 4 << 20


class PieceThread:
    """A thread that calls a function with each piece, in order."""

    def __init__(self, act: Callable[[bytes], None]) -> None:
        self._act = act
        self._pieces: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no memory for its stack
            raise MemoryError(str(error)) from error

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:
            if self._error is None:  # after a failure the queue is only drained, so that `give` cannot block for ever
                try:
                    self._act(piece)
                except BaseException as error:  # noqa: BLE001  it is raised in the caller's thread
                    self._error = error

    def give(self, piece: bytes) -> None:
        """Queue a piece; raise the exception of an earlier one."""
        if self._error is not None:
            raise self._error
        self._pieces.put(piece)

    def end(self) -> None:
        """Return once every piece was handled."""
        self._pieces.put(None)
        self._thread.join()

    def check(self) -> None:
        if self._error is not None:
            raise self._error


def copy_and_hash(descriptor: int, chunks: Iterable[bytes | memoryview], written: Callable[[], None]) -> str:
    """Write the chunks to a new file and return their sha256 in hex; `written` is called after each, in a thread.

    A chunk need only be valid until the next one is requested. Raises the exceptions of the chunks or the writes.
    """
    digest = hashlib.sha256()
    position = flushed = 0

    def write(piece: bytes) -> None:
        nonlocal position, flushed
        write_all(descriptor, piece)
        position += len(piece)
        if position - flushed >= _FLUSH_BYTES:
            # Linux starts to write dirty pages back and returns; they stay in the cache. A hint, so errors are ignored.
            with contextlib.suppress(OSError):
                os.posix_fadvise(descriptor, flushed, position - flushed, os.POSIX_FADV_DONTNEED)
            flushed = position
        written()

    workers: list[PieceThread] = []
    try:
        for act in (digest.update, write):
            workers.append(PieceThread(act))
        for chunk in chunks:
            piece = bytes(chunk)
            for worker in workers:
                worker.give(piece)
    finally:
        for worker in workers:
            worker.end()
    for worker in workers:
        worker.check()
    return digest.hexdigest()


def hash_beside(chunks: Iterable[bytes | memoryview], hashed: Callable[[], None]) -> str:
    """Return the sha256 of the chunks in hex, hashed in a thread; `hashed` is called for each chunk."""
    digest = hashlib.sha256()
    thread = PieceThread(digest.update)
    try:
        for chunk in chunks:
            thread.give(bytes(chunk))
            hashed()
    finally:
        thread.end()
    thread.check()
    return digest.hexdigest()


def pieces_of(descriptor: int) -> Iterator[bytes]:
    """Yield the bytes of an open file, from its start."""
    position = 0
    while piece := os.pread(descriptor, _PIECE_BYTES, position):
        position += len(piece)
        yield piece


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`, with a further call after each partial write."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
