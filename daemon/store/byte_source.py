"""Bounded reads of an archive behind an untrusted descriptor, plain or gzip."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Protocol

from .errors import ArchiveRefused
from .limits import PackageLimits

_COMPRESSED_CHUNK_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20

#: First bytes of other formats, for a helpful message.
_OTHERS = {
    b"PK\x03\x04": "a zip file (or a .pt2 or .pt file: those go into a directory)",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
}


class ByteSource(Protocol):
    """A source whose `read` returns at most `count` bytes and at least one, or none at the end."""

    def read(self, count: int) -> bytes: ...


class FileSource:
    """A regular file, read from its first byte to the end that it had when the reading began."""

    def __init__(self, descriptor: int, on_read: Callable[[int], None] = lambda position: None) -> None:
        self._descriptor = descriptor
        self._on_read = on_read
        self._found = os.fstat(descriptor)
        self._position = 0

    @property
    def size(self) -> int:
        return self._found.st_size

    def read(self, count: int) -> bytes:
        # pread, because the sender of the descriptor shares its offset.
        data = self._pread(min(count, _CHUNK_BYTES, self.size - self._position))
        self._position += len(data)
        self._on_read(self._position)
        return data

    def peek(self, count: int) -> bytes:
        """Return the next bytes, which `read` returns again."""
        return self._pread(count)

    def _pread(self, count: int) -> bytes:
        try:
            return os.pread(self._descriptor, count, self._position)
        except OSError as error:
            raise ArchiveRefused(f"the archive cannot be read: {error.strerror}") from error

    def check_unchanged(self) -> None:
        """Raise ArchiveRefused if the file was written to meanwhile, as far as its size and time show.

        Only the copied and hashed bytes are ever loaded; this check keeps a mixture of two archives out of the store.
        """
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (self.size, self._found.st_mtime_ns):
            raise ArchiveRefused("the archive was changed while it was received: send it again once it is written")


class GzipSource:
    """The content of a gzip file with a single stream."""

    def __init__(self, source: FileSource, limits: PackageLimits) -> None:
        self._source = source
        self._limits = limits
        self._inflate = zlib.decompressobj(wbits=31)
        self._compressed = b""
        self._taken = 0
        self._given = 0

    def read(self, count: int) -> bytes:
        while not self._inflate.eof:
            if not self._compressed:
                self._compressed = self._source.read(_COMPRESSED_CHUNK_BYTES)
                self._taken += len(self._compressed)
                if not self._compressed:
                    raise ArchiveRefused("the gzip stream is cut off: it ends before its checksum")
            try:
                data = self._inflate.decompress(self._compressed, min(count, _CHUNK_BYTES))
            except zlib.error as error:
                raise ArchiveRefused(f"the gzip stream is damaged: {error}") from error
            self._compressed = self._inflate.unconsumed_tail
            self._given += len(data)
            self._check_ratio()
            if data:
                return data
        if self._inflate.unused_data or self._source.read(1):
            raise ArchiveRefused("the gzip stream is followed by other bytes; only one stream is taken")
        return b""

    def _check_ratio(self) -> None:
        limits = self._limits
        # Bytes that were read but not yet inflated do not count.
        taken = self._taken - len(self._compressed)
        if self._given > limits.gzip_free_bytes and self._given > limits.gzip_ratio * taken:
            raise ArchiveRefused(
                f"gzip expands {taken} bytes to more than {self._given}, over {limits.gzip_ratio} for one: "
                "if that is intended, send the tar uncompressed"
            )


def open_archive(source: FileSource, limits: PackageLimits) -> ByteSource:
    """Return the tar in a file, compressed or not; raise ArchiveRefused for any other format."""
    # The size of a tar with the most bytes, headers and padding allowed.
    most = limits.total_bytes + 4096 * limits.members + (1 << 20)
    if source.size > most:
        raise ArchiveRefused(f"the archive has {source.size} bytes; a package of {limits.total_bytes} fits in {most}")
    start = source.peek(8)
    if not start:
        raise ArchiveRefused("the archive is empty")
    for magic, kind in _OTHERS.items():
        if start.startswith(magic):
            raise ArchiveRefused(f"the file is {kind}; send a directory, or a tar of one, plain or gzip")
    return GzipSource(source, limits) if start.startswith(b"\x1f\x8b") else source
