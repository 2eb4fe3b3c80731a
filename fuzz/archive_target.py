"""Fuzz target for the reader of model archives: files and directories with valid names, or ArchiveRefused.

An input is one byte, which tells whether to correct the checksums of the headers first, and the archive. Without the
correction nearly every mutation would fail at a checksum.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib

from fuzz.target import INPUT_LIMIT_BYTES, Target
from shmserve.daemon.store.byte_source import FileSource, open_archive
from shmserve.daemon.store.errors import ArchiveRefused
from shmserve.daemon.store.limits import PackageLimits
from shmserve.daemon.store.tar_reader import BLOCK, TarReader
from shmserve.package_files import name_fault

_LIMITS = PackageLimits(members=16, total_bytes=1 << 20, gzip_free_bytes=1 << 17)
_file: list[int] = []


def run(data: bytes) -> None:
    archive = _mended(data[1:]) if data[:1] >= b"\x80" else data[1:]
    if not _file:
        _file.append(os.memfd_create("fuzz", os.MFD_CLOEXEC))
    descriptor = _file[0]
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, archive, 0)
    read = members = 0
    try:
        for header in (reader := TarReader(open_archive(FileSource(descriptor), _LIMITS), members=_LIMITS.members)):
            members += 1
            assert members <= _LIMITS.members
            assert (header.name == "" and header.is_directory) or name_fault(header.name) is None, "a name is not sound"
            size = 0
            for piece in reader.chunks():
                size += len(piece)
                read += len(piece)
            assert size == header.size
            # The most that gzip can make of 64 KiB.
            assert read <= _LIMITS.gzip_free_bytes + _LIMITS.gzip_ratio * INPUT_LIMIT_BYTES
    except ArchiveRefused:
        pass


def _mended(archive: bytes) -> bytes:
    if archive.startswith(b"\x1f\x8b"):
        return gzip.compress(_mended(gzip.decompress(archive)), 1, mtime=0) if _is_whole(archive) else archive
    mended = bytearray(archive)
    for at in range(0, len(mended) - BLOCK + 1, BLOCK):
        if mended[at + 257 : at + 262] == b"ustar":
            mended[at + 148 : at + 156] = b" " * 8
            mended[at + 148 : at + 156] = b"%06o\0 " % sum(mended[at : at + BLOCK])
    return bytes(mended)


def _is_whole(archive: bytes) -> bool:
    try:
        with gzip.open(io.BytesIO(archive)) as file:
            return len(file.read(INPUT_LIMIT_BYTES + 1)) <= INPUT_LIMIT_BYTES and not file.read(1)
    except (OSError, EOFError, zlib.error):
        return False


def _tar(form: int, names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
                continue
            content = f"# {name}\n".encode()
            info.size = len(content)
            if form == tarfile.PAX_FORMAT:
                info.pax_headers = {"mtime": "1700000000.5", "SCHILY.xattr.user.note": "kept"}
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()[: -(1 << 13)] if len(buffer.getvalue()) > 1 << 13 else buffer.getvalue()


def seeds() -> list[bytes]:
    names = ["./", "model.toml", "./policy.py", "weights/" + "w" * 90 + ".bin"]
    tars = [_tar(form, names) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)]
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tars.append(link.tobuf() + bytes(1024))
    tars.append(tarfile.TarInfo("../up").tobuf() + bytes(1024))
    huge = tarfile.TarInfo("huge")
    huge.size = 1 << 40
    tars.append(huge.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    zipped = [gzip.compress(tar, mtime=0) for tar in tars[:2]]
    return [mend + archive for mend in (b"\0", b"\xff") for archive in (*tars, *zipped)]


WORDS = (
    *(b"ustar\x0000", b"ustar  \x00", b"00000000017\0", b"77777777777\0", b"\x80" + bytes(10) + b"\x01", b"\xff" * 12),
    *(
        b"11 path=ab\n",
        b"13 size=1024\n",
        b"20 SCHILY.xattr.a=b\n",
        b"x",
        b"g",
        b"L",
        b"5",
        b"2",
        b"../",
        b"/",
        b"./",
        b"\0",
    ),
    *(bytes(512), bytes(1024), b"\x1f\x8b\x08"),
)
TARGET = Target(run, seeds, WORDS)
