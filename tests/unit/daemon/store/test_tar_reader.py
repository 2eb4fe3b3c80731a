"""Names and headers of archives, without the process."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmserve.daemon.store import ArchiveRefused
from shmserve.daemon.store.tar_reader import TarReader
from shmserve.package_files import name_fault, shown
from tests.support.archives.tar_bytes import (
    BASE,
    END,
    GNU,
    MANIFEST,
    POLICY,
    directory,
    header,
    long_name,
    member,
    pax,
    record,
    tar,
)


class _Bytes:
    """A source that gives what it has in pieces of any size."""

    def __init__(self, content: bytes, piece: int = 1 << 20) -> None:
        self._content = memoryview(content)
        self._piece = piece

    def read(self, count: int) -> bytes:
        count = min(count, self._piece)
        data, self._content = bytes(self._content[:count]), self._content[count:]
        return data


def _read(content: bytes, piece: int = 1 << 20) -> dict[str, bytes]:
    reader = TarReader(_Bytes(content, piece), members=1024)
    return {header.name: b"".join(reader.chunks()) for header in reader if not header.is_directory}


@given(st.text(max_size=40) | st.text("./\\a\0", max_size=12) | st.binary(max_size=40).map(os.fsdecode))
@settings(max_examples=500, deadline=None)
def test_a_name_without_fault_stays_below_its_directory(name: str) -> None:
    if name_fault(name) is None:
        assert os.path.normpath(name) == name
        assert not os.path.isabs(name) and ".." not in name.split("/") and "\0" not in name
        assert os.path.join("/root", name).startswith("/root/")
        assert name.encode().decode() == name
    assert shown(name).isprintable() and len(shown(name)) <= 64


@given(st.binary(min_size=1, max_size=90).filter(lambda raw: b"\0" not in raw))
@settings(max_examples=500, deadline=None)
def test_a_member_is_refused_or_keeps_its_name(raw: bytes) -> None:
    try:
        files = _read(tar(member(raw, b"content")))
    except ArchiveRefused:
        return
    assert files == {raw.decode().removeprefix("./"): b"content"}


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_a_tar_with_damage_is_refused_or_read_and_nothing_else_happens(data: st.DataObject) -> None:
    whole = tar(
        BASE,
        pax(record("mtime", "1.5"), record("path", "sub/long.bin")),
        member(b"x", b"1" * 600),
        long_name(b"n" * 150 + b"\0"),
        member(b"n", b"2", magic=GNU),
        directory(b"d/"),
    )
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for block in range(0, len(damaged), 512):  # with checksums that fit, or hardly any damage would be looked at
        total = sum(damaged[block : block + 148]) + 256 + sum(damaged[block + 156 : block + 512])
        if damaged[block + 257 : block + 262] == b"ustar" and data.draw(st.booleans()):
            damaged[block + 148 : block + 156] = b"%06o\0 " % total
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))

    try:
        files = _read(bytes(damaged[:cut]))
    except ArchiveRefused as refusal:
        assert str(refusal).isprintable()
    else:
        assert all(name_fault(name) is None for name in files)


@pytest.mark.parametrize("piece", [1, 7, 511, 513])
def test_a_source_may_give_its_bytes_in_any_pieces(piece: int) -> None:
    whole = tar(pax(record("path", "a/b")), member(b"x", b"1" * 1000), BASE)

    assert _read(whole, piece) == {"a/b": b"1" * 1000, "model.toml": MANIFEST, "policy.py": POLICY}


@pytest.mark.parametrize("kind", ["base-256", "pax"])
def test_a_file_of_more_than_8_gib_is_read_whole(kind: str) -> None:
    size = 9 << 30
    base_256 = header(b"big", b"\x80" + size.to_bytes(11, "big"))
    first = base_256 if kind == "base-256" else pax(record("size", f"{size}")) + header(b"big", 0)
    chunk = bytes(1 << 20)

    class Large:
        """`first`, then `size` bytes that are never all in memory, then the end."""

        position = 0

        def read(self, count: int) -> bytes:
            zeros_from, end_from = len(first), len(first) + size
            if self.position < zeros_from:
                data = first[self.position :][:count]
            elif self.position < end_from:
                data = chunk[: min(count, end_from - self.position)]
            else:
                data = END[self.position - end_from :][:count]
            self.position += len(data)
            return data

    reader = TarReader(Large(), members=4)

    assert [(header.name, sum(map(len, reader.chunks()))) for header in reader] == [("big", size)]


def test_names_as_other_tools_write_them_are_read() -> None:
    prefix = tar(member(b"c.py", b"1", prefix=b"a/b"))
    gnu_times = tar(member(b"c.py", b"1", prefix=b"14700000000\0", magic=GNU))  # GNU keeps times there
    full = tar(member(b"n" * 100, b"1"))
    vendor = tar(pax(record("LIBARCHIVE.xattr.com.apple", "x"), record("SCHILY.ino", "7")), member(b"x", b"1"))

    assert [_read(each) for each in (prefix, gnu_times, full, vendor)] == [
        {"a/b/c.py": b"1"},
        {"c.py": b"1"},
        {"n" * 100: b"1"},
        {"x": b"1"},
    ]
