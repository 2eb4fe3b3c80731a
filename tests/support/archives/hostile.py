"""Archives that must be refused, each with the words that say why."""

from __future__ import annotations

import bz2
import io
import lzma
import pickle
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.archives.tar_bytes import (
    BASE,
    END,
    GNU,
    directory,
    header,
    long_name,
    member,
    packed,
    padded,
    pax,
    record,
    tar,
)

KIB = 1 << 10
MIB = 1 << 20


@dataclass(frozen=True)
class Hostile:
    """`build` makes the file, `reason` is in what the sender is told."""

    name: str
    build: Callable[[], bytes]
    reason: str

    def __str__(self) -> str:
        return self.name


def _with(*members: bytes) -> Callable[[], bytes]:
    return lambda: tar(BASE, *members)


def _bomb() -> bytes:
    """64 KiB that become 64 MiB."""
    return packed(BASE + header(b"weights.bin", 64 * MIB) + bytes(64 * MIB) + END)


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("policy.py", "")
    return file.getvalue()


def _wrong_checksum() -> bytes:
    content = packed(tar(BASE))
    return content[:-8] + (zlib.crc32(b"something else")).to_bytes(4, "little") + content[-4:]


def _flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


_NAMES = [
    Hostile("absolute", _with(member(b"/etc/passwd")), "is absolute"),
    Hostile("absolute after the dot", _with(member(b".//etc/passwd")), "is absolute"),
    Hostile("up", _with(member(b"../policy.py")), "goes up"),
    Hostile("up from within", _with(member(b"a/../../policy.py")), "goes up"),
    Hostile("up at the end", _with(member(b"a/..")), "goes up"),
    Hostile("up as a directory", _with(directory(b"../")), "goes up"),
    Hostile("up across the prefix", _with(member(b"policy.py", prefix=b"..")), "goes up"),
    Hostile("dot inside", _with(member(b"a/./b")), "part '.'"),
    Hostile("two dots at the start", _with(member(b"././b")), "part '.'"),
    Hostile("empty part", _with(member(b"a//b")), "empty part"),
    Hostile("file with a directory's name", _with(member(b"a/")), "empty part"),
    Hostile("no name", _with(member(b"")), "is empty"),
    Hostile("backslash", _with(member(b"..\\policy.py")), "backslash"),
    Hostile("newline", _with(member(b"a\nb")), "control or invisible"),
    Hostile("escape sequence", _with(member(b"a\x1b[2Jb")), "control or invisible"),
    Hostile("delete character", _with(member(b"a\x7f")), "control or invisible"),
    Hostile("right to left", _with(member("policy\u202eyp.exe".encode())), "control or invisible"),
    Hostile("no width", _with(member("policy\u200b.py".encode())), "control or invisible"),
    Hostile("not UTF-8", _with(member(b"caf\xe9.py")), "not UTF-8"),
    Hostile("overlong UTF-8", _with(member(b"\xc0\xae\xc0\xae/policy.py")), "not UTF-8"),
    Hostile("long part", _with(long_name(b"n" * 256), member(b"n", magic=GNU)), "a part of 256 bytes"),
    Hostile("long path", _with(long_name(b"dir/" * 10 + b"n" * 985), member(b"n", magic=GNU)), "1025 bytes long"),
    Hostile("too deep", _with(member(b"d/" * 16 + b"f")), "17 levels deep"),
]

_KINDS = [
    Hostile(name, _with(header(b"policy", 0, kind, link=b"/etc/passwd")), reason)
    for name, kind, reason in (
        ("hard link", b"1", "is a hard link"),
        ("symbolic link", b"2", "is a symbolic link"),
        ("character device", b"3", "is a character device"),
        ("block device", b"4", "is a block device"),
        ("FIFO", b"6", "is a FIFO"),
        ("contiguous file", b"7", "is a contiguous file"),
        ("long link", b"K", "long target of a link"),
        ("sparse file", b"S", "is a sparse file"),
        ("volume", b"V", "volume label"),
        ("next volume", b"M", "another volume"),
        ("incremental dump", b"D", "incremental dump"),
        ("unknown kind", b"Q", "unknown type"),
    )
] + [Hostile("directory with content", _with(member(b"d/", b"boo", b"5")), "is a directory with 3 bytes")]

_CLASHES = [
    Hostile("twice", _with(member(b"policy.py")), "occurs twice"),
    Hostile("twice with a dot", _with(member(b"./policy.py")), "occurs twice"),
    Hostile("twice by pax", _with(pax(record("path", "policy.py")), member(b"other")), "occurs twice"),
    Hostile("twice by a long name", _with(long_name(b"policy.py\0"), member(b"other", magic=GNU)), "occurs twice"),
    Hostile("file as a directory", _with(member(b"policy.py/evil.py")), "both a file and a directory"),
    Hostile("directory as a file", _with(directory(b"d/"), member(b"d")), "both a file and a directory"),
    Hostile("implied directory as a file", _with(member(b"d/e/f"), member(b"d/e")), "both a file and a directory"),
    Hostile("file as an explicit directory", _with(directory(b"policy.py/")), "both a file and a directory"),
]

_SIZES = [
    Hostile("too many files", _with(*(member(b"%d" % n, b"") for n in range(1023))), "more than 1024 members"),
    Hostile("too many directories", _with(*(directory(b"%d/" % n) for n in range(1023))), "more than 1024 members"),
    Hostile("a flood of headers", lambda: tar(*(member(b"x", b"") for _ in range(50_000))), "occurs twice"),
    Hostile("a flood of global headers", _with(pax(record("comment", "x"), kind=b"g") * 5000), "more than 1024"),
    Hostile("a large file", _with(header(b"big", 8**11 - 1)), "cut off"),
    Hostile("more than a package may have", _with(header(b"big", b"\x80" + (17 << 30).to_bytes(11, "big"))), "at most"),
    Hostile("2**50 bytes", _with(header(b"big", b"\x80" + (1 << 50).to_bytes(11, "big"))), "at most"),
    Hostile("2**87 bytes", _with(header(b"big", b"\x80" + b"\xff" * 11)), "at most"),
    Hostile("negative", _with(header(b"big", b"\xff" * 12)), "negative or absurd"),
    Hostile("negative in octal", _with(header(b"big", b"-0000000001\0")), "a size that is not a number"),
    Hostile("hexadecimal", _with(header(b"big", b"0x000000010\0")), "a size that is not a number"),
    Hostile("decimal", _with(header(b"big", b"00000000009\0")), "a size that is not a number"),
    Hostile("no size", _with(header(b"big", b"")), "a size that is not a number"),
    Hostile("two files that are too much", _with(*(header(b"%d" % n, 8**11 - 1) for n in range(3))), "cut off"),
]

_ENDS = [
    Hostile("cut off in a file", lambda: BASE + header(b"weights", 5000) + bytes(4999), "cut off"),
    Hostile("cut off in a header", lambda: BASE + header(b"weights", 5000)[:300], "cut off"),
    Hostile("cut off in the padding", lambda: BASE + header(b"weights", 5) + b"12345", "cut off"),
    Hostile("no end", lambda: BASE, "cut off"),
    Hostile("half an end", lambda: BASE + bytes(512), "cut off"),
    Hostile("goes on", lambda: BASE + bytes(512) + member(b"evil.py") + END, "goes on after its end"),
    Hostile("a second archive", lambda: tar(BASE) + tar(member(b"evil.py")), "followed by other bytes"),
    Hostile("followed by text", lambda: tar(BASE) + b"hello", "followed by other bytes"),
    Hostile("followed by endless zeros", lambda: tar(BASE) + bytes(2 * MIB), "zero bytes"),
]

_PAX = [
    Hostile("pax path up", _with(pax(record("path", "../evil.py")), member(b"x")), "goes up"),
    Hostile("pax path absolute", _with(pax(record("path", "/evil.py")), member(b"x")), "is absolute"),
    Hostile("pax path with NUL", _with(pax(record("path", b"a\0b")), member(b"x")), "control or invisible"),
    Hostile("pax path not UTF-8", _with(pax(record("path", b"\xff")), member(b"x")), "not UTF-8"),
    Hostile("pax path empty", _with(pax(record("path", b"")), member(b"x")), "is empty"),
    Hostile("pax makes a link", _with(pax(record("linkpath", "/etc/passwd")), member(b"x")), "no model package needs"),
    Hostile("pax sparse", _with(pax(record("GNU.sparse.major", "1")), member(b"x")), "no model package needs"),
    Hostile("pax sparse of star", _with(pax(record("SCHILY.realsize", "9")), member(b"x")), "no model package needs"),
    Hostile("pax names in bytes", _with(pax(record("hdrcharset", "BINARY")), member(b"x")), "no model package needs"),
    Hostile("pax size huge", _with(pax(record("size", str(1 << 50))), header(b"x", 0)), "at most"),
    Hostile(
        "pax size beyond numbers",
        _with(pax(record("size", "9" * 4000)), header(b"x", 0)),
        "a pax size that is not a number",
    ),
    Hostile("pax size negative", _with(pax(record("size", "-1")), member(b"x")), "a pax size that is not a number"),
    Hostile("pax size differs", _with(pax(record("size", "512")), member(b"x")), "two sizes, 1 and 512"),
    Hostile("pax size of a directory", _with(pax(record("size", "0")), member(b"d/", b"boo", b"5")), "two sizes"),
    Hostile("pax record longer than pax", _with(member(b"p", b"99 path=x\n", b"x"), member(b"x")), "malformed records"),
    Hostile("pax record of no length", _with(member(b"p", b"0 path=x\n", b"x"), member(b"x")), "malformed records"),
    Hostile(
        "pax record of negative length", _with(member(b"p", b"-9 path=x\n", b"x"), member(b"x")), "malformed records"
    ),
    Hostile("pax record that ends early", _with(member(b"p", b"7 path=x\n", b"x"), member(b"x")), "malformed records"),
    Hostile("pax record without =", _with(member(b"p", b"10 path:x\n", b"x"), member(b"x")), "malformed records"),
    Hostile("pax record without a key", _with(pax(record("", "x")), member(b"x")), "malformed records"),
    Hostile("pax without spaces", _with(member(b"p", b"1" * 60_000, b"x"), member(b"x")), "malformed records"),
    Hostile("pax record twice", _with(pax(record("path", "a"), record("path", "b")), member(b"x")), "twice"),
    Hostile("pax of 1 GiB", _with(header(b"p", 1 << 30, b"x")), "a pax header of 1073741824 bytes"),
    Hostile("pax of 100 KiB", _with(pax(record("comment", "x" * 100 * KIB)), member(b"x")), "a pax header of"),
    Hostile("pax for no file", _with(pax(record("path", "a"))), "without the file it belongs to"),
    Hostile("harmless pax for no file", _with(pax(record("mtime", "1"))), "without the file it belongs to"),
    Hostile("pax after pax", _with(pax(record("path", "a")) * 2, member(b"x")), "second extension header"),
    Hostile(
        "pax after a long name", _with(long_name(b"a"), pax(record("path", "b")), member(b"x")), "second extension"
    ),
    Hostile("long name after pax", _with(pax(record("path", "b")), long_name(b"a"), member(b"x")), "second extension"),
    Hostile("global path", _with(pax(record("path", "a"), kind=b"g"), member(b"x")), "for all files at once"),
    Hostile("global size", _with(pax(record("size", "1"), kind=b"g"), member(b"x")), "for all files at once"),
    Hostile(
        "global header in between",
        _with(pax(record("path", "a")), pax(record("comment", "x"), kind=b"g"), member(b"x")),
        "between an extension header and its file",
    ),
]

_LONG_NAMES = [
    Hostile("long name up", _with(long_name(b"../evil.py\0"), member(b"x", magic=GNU)), "goes up"),
    Hostile("long name with NUL", _with(long_name(b"a\0../b\0"), member(b"x", magic=GNU)), "control or invisible"),
    Hostile("long name of nothing", _with(long_name(b""), member(b"x", magic=GNU)), "a name of 0 bytes"),
    Hostile("long name of 1 MiB", _with(long_name(b"n" * MIB), member(b"x", magic=GNU)), "a name of 1048576 bytes"),
    Hostile("long name of 8 GiB", _with(header(b"L", 8**11 - 1, b"L", magic=GNU)), "a name of 8589934591 bytes"),
    Hostile("long name for no file", _with(long_name(b"a")), "without the file it belongs to"),
]

_HEADERS = [
    Hostile("damaged name", lambda: BASE + _flipped(tar(member(b"weights")), 3), "checksum does not match"),
    Hostile("no checksum", _with(header(b"x", checksum=b"\0" * 8)), "checksum does not match"),
    Hostile("old format", _with(member(b"x", magic=bytes(8))), "neither POSIX"),
    Hostile("new format", _with(member(b"x", magic=b"ustar\x0001")), "neither POSIX"),
]

_FORMATS = [
    Hostile("empty file", lambda: b"", "the archive is empty"),
    Hostile("no tar", lambda: b"hello\n" * 1000, "is not a tar"),
    Hostile("short text", lambda: b"hello\n", "is not a tar"),
    Hostile("pickle", lambda: pickle.dumps({"weights": [0.5] * 1000}), "is not a tar"),
    Hostile("zip", _zip, "a zip file"),
    Hostile("xz", lambda: lzma.compress(tar(BASE)), "compressed with xz"),
    Hostile("bzip2", lambda: bz2.compress(tar(BASE)), "compressed with bzip2"),
    Hostile("zstd", lambda: b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd"),
    Hostile("no file", lambda: END, "the package contains no files"),
    Hostile("directories only", lambda: tar(directory(b"model/")), "the package contains no files"),
    Hostile("caches only", lambda: tar(member(b"__pycache__/policy.cpython-311.pyc")), "the package contains no files"),
]

_GZIP = [
    Hostile("gzip bomb", _bomb, "send the tar uncompressed"),
    Hostile("gzip cut off", lambda: packed(tar(BASE))[:-20], "gzip stream is"),
    Hostile("gzip without its checksum", lambda: packed(tar(BASE))[:-8], "gzip stream is cut off"),
    Hostile("gzip with another checksum", _wrong_checksum, "gzip stream is damaged"),
    Hostile("gzip damaged", lambda: _flipped(packed(tar(BASE)), 40), "damaged|checksum|cut off|not a tar"),
    Hostile("gzip header only", lambda: packed(tar(BASE))[:10], "gzip stream is cut off"),
    Hostile("gzip followed by text", lambda: packed(tar(BASE)) + b"hello", "followed by other bytes"),
    Hostile("gzip followed by gzip", lambda: packed(tar(BASE)) + packed(b"more"), "followed by other bytes"),
    Hostile("gzip in two streams", lambda: packed(BASE) + packed(END), "followed by other bytes"),
    Hostile("gzip in gzip", lambda: packed(packed(tar(BASE) + padded(b"") * 10)), "is not a tar|cut off"),
    Hostile("gzip of nothing", lambda: packed(b""), "is not a tar"),
]

HOSTILE = [
    *_NAMES,
    *_KINDS,
    *_CLASHES,
    *_SIZES,
    *_ENDS,
    *_PAX,
    *_LONG_NAMES,
    *_HEADERS,
    *_FORMATS,
    *_GZIP,
]
