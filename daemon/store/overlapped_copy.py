"""Writes a file while it is hashed and while the next pieces of it are read: three threads, one pass."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable

#: Pieces that were read and are not yet hashed and written: 8 MiB at most.
_AHEAD = 8
#: Written bytes are handed to the disk in steps of this many, so that it works before the last byte has come.
_FLUSH_BYTES = 8 << 20
#: A file of fewer bytes is over before a thread has started.
OVERLAPPED_BYTES = 4 << 20


class _Worker:
    """A thread that does one thing with each piece, in their order."""

    def __init__(self, act: Callable[[bytes], None]) -> None:
        self._act = act
        self._pieces: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no room for its stack
            raise MemoryError(str(error)) from error

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:
            if self._error is None:  # after a failure the queue is only emptied, so that `give` never waits for ever
                try:
                    self._act(piece)
                except BaseException as error:  # noqa: BLE001  it is raised where the pieces come from
                    self._error = error

    def give(self, piece: bytes) -> None:
        """Queue a piece; raises what an earlier one has raised."""
        if self._error is not None:
            raise self._error
        self._pieces.put(piece)

    def end(self) -> None:
        """Return once every piece is done."""
        self._pieces.put(None)
        self._thread.join()

    def check(self) -> None:
        if self._error is not None:
            raise self._error


def copy_and_hash(descriptor: int, chunks: Iterable[bytes | memoryview], written: Callable[[], None]) -> str:
    """Write the chunks to a new file and return their sha256 in hex; `written` is called after each, in a thread.

    A chunk is valid until the next one is asked for. Raises what the chunks or the writes raise.
    """
    digest = hashlib.sha256()
    position = flushed = 0

    def write(piece: bytes) -> None:
        nonlocal position, flushed
        write_all(descriptor, piece)
        position += len(piece)
        if position - flushed >= _FLUSH_BYTES:
            # Linux begins to write dirty pages back and returns; they stay in the cache. A hint: never an error.
            with contextlib.suppress(OSError):
                os.posix_fadvise(descriptor, flushed, position - flushed, os.POSIX_FADV_DONTNEED)
            flushed = position
        written()

    workers: list[_Worker] = []
    try:
        for act in (digest.update, write):
            workers.append(_Worker(act))
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


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of it, however often the kernel takes only a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
