"""Segments on the real /dev/shm: exact modes, nobody else's objects, and headers that lie."""

from __future__ import annotations

import os
import secrets
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmserve.errors import ProtocolMismatch, ServiceUnavailable
from shmserve.layout import Geometry, header_bytes
from shmserve.protocol import WIRE_VERSION
from shmserve.segment import Identity, Segment, create_segment, unlink_segment

GEOMETRY = Geometry(slots=2, metadata_bytes=256, payload_bytes=1000)
IDENTITY = Identity(epoch=11, channel=3, generation=4)


@pytest.fixture
def name() -> Iterator[str]:
    name = f"/shmserve-test.{secrets.token_hex(8)}"
    yield name
    unlink_segment(name)


def file_of(name: str) -> Path:
    return Path("/dev/shm") / name.removeprefix("/")


def test_one_end_reads_the_bytes_that_the_other_wrote(name: str) -> None:
    create_segment(name, GEOMETRY, IDENTITY, counter=9)
    writer, reader = Segment.open(name, writable=True), Segment.open(name, writable=False)
    try:
        writer.words[writer.counter_index] += 1
        writer.bytes[-1] = 77

        assert reader.words[reader.counter_index] == 10
        assert reader.bytes[-1] == 77
        assert (reader.geometry, reader.identity) == (GEOMETRY, IDENTITY)
    finally:
        writer.close()
        reader.close()


@pytest.mark.fault("T13")
def test_a_segment_opened_for_reading_cannot_be_written(name: str) -> None:
    create_segment(name, GEOMETRY, IDENTITY)
    reader = Segment.open(name, writable=False)

    with pytest.raises(TypeError, match="read-only"):
        reader.words[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        reader.bytes[0] = 1
    reader.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660])
def test_the_mode_is_exact_whatever_the_umask(name: str, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        create_segment(name, GEOMETRY, IDENTITY, mode)
    finally:
        os.umask(before)

    assert stat.S_IMODE(file_of(name).stat().st_mode) == mode


@pytest.mark.fault("T03")
def test_all_its_bytes_are_allocated(name: str) -> None:
    geometry = Geometry(slots=4, metadata_bytes=4096, payload_bytes=1 << 20)
    create_segment(name, geometry, IDENTITY)

    found = file_of(name).stat()

    assert found.st_size == geometry.segment_bytes
    assert found.st_blocks * 512 >= geometry.segment_bytes


@pytest.mark.fault("T08")
def test_a_name_that_is_taken_is_neither_opened_nor_resized_nor_removed(name: str) -> None:
    file_of(name).write_bytes(b"a stranger's")
    file_of(name).chmod(0o604)

    with pytest.raises(FileExistsError, match=name):
        create_segment(name, GEOMETRY, IDENTITY)

    assert file_of(name).read_bytes() == b"a stranger's"
    assert stat.S_IMODE(file_of(name).stat().st_mode) == 0o604


@pytest.mark.fault("T15", "T16")
def test_opening_never_changes_the_object(name: str) -> None:
    create_segment(name, GEOMETRY, IDENTITY)
    os.truncate(file_of(name), GEOMETRY.segment_bytes + 4096)
    before = file_of(name).read_bytes()

    Segment.open(name, writable=True).close()

    assert file_of(name).read_bytes() == before


@pytest.mark.fault("T88")
def test_a_removed_name_is_not_a_service(name: str) -> None:
    with pytest.raises(ServiceUnavailable, match=f"shared memory {name} is gone.*another /dev/shm"):
        Segment.open(name, writable=False)


def test_removing_a_name_twice_is_not_an_error_and_leaves_the_memory_to_its_users(name: str) -> None:
    create_segment(name, GEOMETRY, IDENTITY)
    segment = Segment.open(name, writable=True)
    unlink_segment(name)
    unlink_segment(name)

    segment.bytes[-1] = 5

    assert segment.bytes[-1] == 5
    segment.close()


def test_an_array_keeps_the_memory_of_a_closed_segment(name: str) -> None:
    create_segment(name, GEOMETRY, IDENTITY)
    segment = Segment.open(name, writable=True)
    view = segment.bytes[-10:]
    view[:] = 3
    segment.close()
    segment.close()

    assert view.tolist() == [3] * 10


HEADER = header_bytes(GEOMETRY, epoch=11, generation=4, channel=3)


def with_word(index: int, value: int) -> bytes:
    return HEADER[: 8 * index] + struct.pack("=Q", value) + HEADER[8 * index + 8 :]


@pytest.mark.fault("T14")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a segment: 0 bytes"),
        (HEADER[:63], "not a segment: 63 bytes, a header alone has 64"),
        (bytes(GEOMETRY.segment_bytes), "segment has magic 0x0 and wire version 0"),
        (with_word(0, 1).ljust(GEOMETRY.segment_bytes), f"magic 0x1 and wire version {WIRE_VERSION}"),
        (
            with_word(1, WIRE_VERSION + 1).ljust(GEOMETRY.segment_bytes),
            f"wire version {WIRE_VERSION + 1}.*install the same shmserve on both sides",
        ),
        (with_word(5, 0).ljust(GEOMETRY.segment_bytes), "header makes no sense: 0 slots"),
        (with_word(5, 1 << 63).ljust(GEOMETRY.segment_bytes), "header makes no sense: 9223372036854775808 slots"),
        (with_word(6, 100).ljust(GEOMETRY.segment_bytes), "header makes no sense: 100 bytes of metadata"),
        (with_word(7, (1 << 64) - 1).ljust(GEOMETRY.segment_bytes), "header makes no sense"),
        (with_word(7, 1 << 20).ljust(GEOMETRY.segment_bytes), "its header says"),
        (HEADER.ljust(GEOMETRY.segment_bytes - 1), f"its header says {GEOMETRY.segment_bytes}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("writable", [True, False])
def test_a_header_that_cannot_be_is_refused(name: str, content: bytes, said: str, writable: bool) -> None:
    file_of(name).write_bytes(content)

    with pytest.raises(ProtocolMismatch, match=said):
        Segment.open(name, writable=writable)


def test_a_descriptor_that_is_not_a_file_is_not_a_segment() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(ProtocolMismatch, match="not a segment"):
            Segment.from_descriptor(reading, writable=False)
    finally:
        os.close(reading)
        os.close(writing)
