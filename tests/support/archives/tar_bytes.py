"""Tars written out block by block, so that they can say what no tool would write."""

from __future__ import annotations

import gzip

END = bytes(1024)
GNU = b"ustar  \0"
POSIX = b"ustar\x0000"

MANIFEST = b'[model]\nname = "small"\n'
POLICY = b"class Policy: ...\n"


def header(
    name: bytes,
    size: int | bytes = 0,
    kind: bytes = b"0",
    *,
    magic: bytes = POSIX,
    link: bytes = b"",
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One block. `size` as bytes goes into the field as it is."""
    field = b"%011o\0" % size if isinstance(size, int) else size.ljust(12, b"\0")
    fields = (
        name.ljust(100, b"\0"),
        b"0000644\0",
        b"0001750\0",
        b"0001750\0",
        field,
        b"14700000000\0",
        b" " * 8,
        kind,
        link.ljust(100, b"\0"),
        magic,
        b"robot".ljust(32, b"\0"),
        b"robot".ljust(32, b"\0"),
        b"0000000\0",
        b"0000000\0",
        prefix.ljust(155, b"\0"),
        bytes(12),
    )
    block = b"".join(fields)
    assert len(block) == 512
    total = b"%06o\0 " % sum(block) if checksum is None else checksum
    return block[:148] + total + block[156:]


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def member(
    name: bytes, content: bytes = b"x", kind: bytes = b"0", *, magic: bytes = POSIX, prefix: bytes = b""
) -> bytes:
    return header(name, len(content), kind, magic=magic, prefix=prefix) + padded(content)


def directory(name: bytes) -> bytes:
    return header(name, 0, b"5")


def record(key: str, value: str | bytes) -> bytes:
    """One pax record; its length counts itself."""
    rest = b" " + key.encode() + b"=" + (value if isinstance(value, bytes) else value.encode()) + b"\n"
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    return member(b"PaxHeaders/x", b"".join(records), kind)


def long_name(name: bytes) -> bytes:
    return member(b"././@LongLink", name, b"L", magic=GNU)


#: What every package has; what is hostile comes after it, so that it is not the first thing looked at.
BASE = member(b"model.toml", MANIFEST) + member(b"policy.py", POLICY)


def tar(*members: bytes) -> bytes:
    return b"".join(members) + END


def packed(content: bytes) -> bytes:
    return gzip.compress(content, 6, mtime=0)
