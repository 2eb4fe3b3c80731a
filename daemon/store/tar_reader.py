"""Streaming tar reader for the subset of the format that a model package needs.

It accepts regular files and directories, POSIX or GNU headers, and long names as GNU tar ('L') and pax ('x') write
them. It does not use `tarfile`, so that its rules depend neither on the Python version nor on faults of a general
reader.
Formats: https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html ("ustar Interchange Format", "pax Header
Block") and tar(5) of libarchive for GNU's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from shmserve.package_files import NAME_BYTES, name_fault, shown

from .byte_source import ByteSource
from .errors import ArchiveRefused

BLOCK = 512
#: Size limit of pax headers, which hold times, owners, long names and extended attributes.
PAX_BYTES = 1 << 16
#: Most zeros after the end: tar fills up its last record, which has 10 KiB by default.
PADDING_BYTES = 1 << 20

#: A member has its own header, at most one extension header, and sometimes a global one before it.
_HEADERS_OF_A_MEMBER = 3

_NO_TAR = "the file is not a tar: send a directory, or a tar of one, plain or gzip"
_ZEROS = bytes(BLOCK)
_POSIX_MAGIC = b"ustar\x0000"
_GNU_MAGIC = b"ustar  \x00"
_FILE_TYPES = (b"0", b"\0")
_DIRECTORY = b"5"
_GNU_LONG_NAME = b"L"
_PAX = b"x"
_PAX_GLOBAL = b"g"
#: With --dereference alone, GNU tar writes the second of two names of one file as a hard link.
_WITHOUT_LINKS = "pack the files themselves: tar --dereference --hard-dereference -cf"
_REFUSED_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"7": "a contiguous file",
    b"K": "the long target of a link",
    b"S": "a sparse file",
    b"M": "the continuation of a file from another volume",
    b"V": "a volume label",
    b"D": "an incremental dump",
    b"N": "a list of renamed files",
    b"X": "an old Solaris header",
}
_REMEDIES = {
    b"1": _WITHOUT_LINKS,
    b"2": _WITHOUT_LINKS,
    b"K": _WITHOUT_LINKS,
    b"S": "pack it without tar's option --sparse",
}
#: pax records that change neither a file's name nor its bytes.
_HARMLESS = ("mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment")
_HARMLESS_PREFIXES = (
    "SCHILY.xattr.",
    "SCHILY.acl.",
    "SCHILY.fflags",
    "SCHILY.dev",
    "SCHILY.ino",
    "SCHILY.nlink",
    "LIBARCHIVE.",
    "RHT.security.",
)
_DECIMAL = re.compile(rb"0|[1-9][0-9]{0,18}")
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
#: Files of this size and more have their size in pax, because a header has too few octal digits.
_OCTAL_LIMIT = 8**11


@dataclass(frozen=True)
class Header:
    """One file or directory. A file's bytes are read from the reader before the next header."""

    name: str
    size: int
    is_directory: bool


class TarReader:
    """An iterator over headers; `chunks` returns the bytes of each file. Raises ArchiveRefused."""

    def __init__(self, source: ByteSource, *, members: int) -> None:
        self._source = source
        self._members = members
        self._count = 0
        self._headers = 0
        self._left = 0  # unread bytes of the present file
        self._padding = 0
        self._at = "its first header"

    def __iter__(self) -> Iterator[Header]:
        while True:
            for _ in self.chunks():
                pass  # skips a file that the caller did not read
            header = self._next()
            if header is None:
                self._check_end()
                return
            self._left = header.size
            self._padding = -header.size % BLOCK
            yield header

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes of the file whose header came last."""
        while self._left:
            data = self._source.read(self._left)
            if not data:
                raise ArchiveRefused(f"the archive is cut off in {self._at}: {self._left} bytes are missing")
            self._left -= len(data)
            yield data
        self._exactly(self._padding)
        self._padding = 0

    def _next(self) -> Header | None:
        long_name: str | None = None
        pax: dict[str, str] = {}
        while True:
            block = self._exactly(BLOCK)
            if block == _ZEROS:
                if long_name is not None or pax:
                    raise ArchiveRefused("the archive ends after an extension header, without the file it belongs to")
                return None
            self._headers += 1
            if self._count == self._members or self._headers > _HEADERS_OF_A_MEMBER * self._members:
                raise ArchiveRefused(f"the archive has more than {self._members} members")
            self._at = f"member {self._count + 1}"
            self._check_header(block)
            kind, size = block[156:157], self._size(block)
            if kind == _PAX_GLOBAL:
                if long_name is not None or pax:
                    raise ArchiveRefused(f"{self._at} is a global header between an extension header and its file")
                self._global_header(size)
            elif kind in (_GNU_LONG_NAME, _PAX):
                if long_name is not None or pax:
                    raise ArchiveRefused(f"{self._at} is a second extension header for one file")
                if kind == _PAX:
                    pax = self._pax(size)
                else:
                    long_name = self._long_name(size)
            else:
                self._count += 1
                return self._header(block, kind, size, long_name, pax)

    def _check_header(self, block: bytes) -> None:
        total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        claimed = _OCTAL.fullmatch(block[148:156])
        if claimed is None or int(claimed[1], 8) != total:
            if self._headers == 1:
                raise ArchiveRefused(_NO_TAR)
            raise ArchiveRefused(f"the header of {self._at} is damaged: its checksum does not match")
        if block[257:265] not in (_POSIX_MAGIC, _GNU_MAGIC):
            raise ArchiveRefused(f"the header of {self._at} is neither POSIX (ustar, pax) nor GNU")

    def _size(self, block: bytes) -> int:
        field = block[124:136]
        if field[0] & 0x80:  # GNU's form for 8 GiB and more: big-endian, two's complement
            if field[0] != 0x80:
                raise ArchiveRefused(f"{self._at} claims a size that is negative or absurd")
            return int.from_bytes(field[1:], "big")
        digits = _OCTAL.fullmatch(field)
        if digits is None:
            raise ArchiveRefused(f"{self._at} has a size that is not a number")
        return int(digits[1], 8)

    def _header(self, block: bytes, kind: bytes, size: int, long_name: str | None, pax: dict[str, str]) -> Header:
        if long_name is not None:
            name = long_name
        elif "path" in pax:
            name = pax["path"]
        else:
            raw = _until_nul(block[:100])
            if block[257:265] == _POSIX_MAGIC and (prefix := _until_nul(block[345:500])):
                raw = prefix + b"/" + raw
            name = raw.decode("utf-8", "surrogateescape")
        self._at = f"member {self._count}, {shown(name)},"
        if kind in _REFUSED_TYPES:
            remedy = f"; {_REMEDIES[kind]}" if kind in _REMEDIES else ""
            raise ArchiveRefused(f"{self._at} is {_REFUSED_TYPES[kind]}; a package holds regular files only{remedy}")
        if kind not in (*_FILE_TYPES, _DIRECTORY):
            raise ArchiveRefused(f"{self._at} is of an unknown type {kind!r}")
        is_directory = kind == _DIRECTORY
        if "size" in pax:
            size = self._larger_size(size, pax["size"])
        if is_directory:
            if size:
                raise ArchiveRefused(f"{self._at} is a directory with {size} bytes of content")
            name = name.removesuffix("/")
        # 'tar -C model -c .' writes its directory as '.' and begins every name with './'.
        name = name.removeprefix("./")
        if is_directory and name in (".", ""):
            return Header("", 0, True)
        if fault := name_fault(name):
            raise ArchiveRefused(f"the name of {self._at} {fault}")
        return Header(name, size, is_directory)

    def _larger_size(self, octal: int, text: str) -> int:
        if not _DECIMAL.fullmatch(text.encode()):
            raise ArchiveRefused(f"{self._at} has a pax size that is not a number")
        size = int(text)
        # Different readers of such a file would see different archives in it.
        if size != octal and size < _OCTAL_LIMIT:
            raise ArchiveRefused(f"{self._at} has two sizes, {octal} and {size}")
        return size

    def _long_name(self, size: int) -> str:
        # The name of a directory may end in '/', and GNU tar ends it with a NUL.
        if not 0 < size <= NAME_BYTES + 2:
            raise ArchiveRefused(f"{self._at} has a name of {size} bytes; 1 to {NAME_BYTES} are allowed")
        return self._content(size).removesuffix(b"\0").decode("utf-8", "surrogateescape")

    def _pax(self, size: int) -> dict[str, str]:
        """Return the records "path" and "size", if present; refuse records that are not harmless."""
        kept = {}
        for key, value in self._records(size).items():
            if key in ("path", "size"):
                kept[key] = value
            elif key not in _HARMLESS and not key.startswith(_HARMLESS_PREFIXES):
                raise ArchiveRefused(f"{self._at} has the pax record {shown(key)}, which no model package needs")
        return kept or {"": ""}  # not empty, because its file must follow

    def _global_header(self, size: int) -> None:
        for key in self._records(size):
            if key not in _HARMLESS:
                raise ArchiveRefused(f"{self._at} sets {shown(key)} for all files at once")

    def _records(self, size: int) -> dict[str, str]:
        if size > PAX_BYTES:
            raise ArchiveRefused(f"{self._at} is a pax header of {size} bytes, more than {PAX_BYTES}")
        content = self._content(size)
        found: dict[str, str] = {}
        position = 0
        while position < len(content):
            space = content.find(b" ", position, position + 8)
            digits = content[position:space]
            length = int(digits) if space > 0 and _DECIMAL.fullmatch(digits) else 0
            record = content[space + 1 : position + length]
            key, equals, value = record.partition(b"=")
            if position + length > len(content) or not key or not equals or not value.endswith(b"\n"):
                raise ArchiveRefused(f"{self._at} is a pax header with malformed records")
            name = key.decode("utf-8", "surrogateescape")
            if name in found:
                raise ArchiveRefused(f"{self._at} has the pax record {shown(name)} twice")
            found[name] = value[:-1].decode("utf-8", "surrogateescape")
            position += length
        return found

    def _content(self, size: int) -> bytes:
        content = self._exactly(size)
        self._exactly(-size % BLOCK)
        return content

    def _exactly(self, count: int) -> bytes:
        pieces = []
        while count:
            data = self._source.read(count)
            if not data:
                if not self._headers:
                    raise ArchiveRefused(_NO_TAR)
                raise ArchiveRefused(f"the archive is cut off in or after {self._at}; a tar ends with 1024 zero bytes")
            pieces.append(data)
            count -= len(data)
        return b"".join(pieces)

    def _check_end(self) -> None:
        if self._exactly(BLOCK) != _ZEROS:
            raise ArchiveRefused("the archive goes on after its end: one zero block, then other bytes")
        padding = 0
        while data := self._source.read(1 << 16):
            padding += len(data)
            if data.count(0) != len(data):
                raise ArchiveRefused("the archive is followed by other bytes")
            if padding > PADDING_BYTES:
                raise ArchiveRefused(f"the archive is followed by more than {PADDING_BYTES} zero bytes")


def _until_nul(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]
