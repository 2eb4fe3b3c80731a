"""Where every byte is: wire bytes written out by hand."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmserve.layout import (
    CACHE_LINE,
    COUNTER_OFFSET,
    HEADER,
    MAX_METADATA_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_SLOTS,
    REPLY,
    REQUEST,
    SLOT_HEAD_BYTES,
    SLOTS_OFFSET,
    Geometry,
    header_bytes,
    number_of,
    sequence_of,
    slot_of,
)
from shmserve.protocol import MAGIC, WIRE_VERSION, Flag, Kind, Status

geometries = st.builds(
    Geometry,
    st.integers(1, MAX_SLOTS),
    st.integers(1, MAX_METADATA_BYTES // CACHE_LINE).map(lambda lines: lines * CACHE_LINE),
    st.integers(0, MAX_PAYLOAD_BYTES),
)


def test_the_numbers_on_the_wire_are_these() -> None:
    assert MAGIC.to_bytes(8, "little") == b"shmserve"
    assert WIRE_VERSION == 4
    assert [(kind.name, int(kind)) for kind in Kind] == [("INFER", 1), ("RESET", 2)]
    assert [(status.name, int(status)) for status in Status] == [
        ("OK", 0),
        ("RESIZE_REQUIRED", 1),
        ("EXPIRED", 2),
        ("CANCELLED", 3),
        ("SUPERSEDED", 4),
        ("STALE", 5),
        ("REJECTED", 6),
        ("FAILED", 7),
        ("ENGINE_LOST", 8),
        ("STOPPING", 9),
    ]
    assert [Flag.PICKLED, Flag.SUPERSEDE, Flag.REPEATABLE, Flag.IN_PLACE, Flag.STATEFUL] == [1, 2, 4, 8, 16]


def test_a_header_is_these_bytes() -> None:
    header = header_bytes(Geometry(slots=3, metadata_bytes=128, payload_bytes=1000), epoch=5, generation=6, channel=7)

    assert header == b"shmserve" + struct.pack("=7Q", 4, 5, 6, 7, 3, 128, 1000)


def test_the_words_of_each_side_have_separate_cache_lines() -> None:
    assert HEADER.size <= COUNTER_OFFSET
    assert COUNTER_OFFSET + CACHE_LINE <= SLOTS_OFFSET
    assert max(REQUEST.size, REPLY.size) <= SLOT_HEAD_BYTES


@given(geometries)
def test_nothing_overlaps_and_payloads_begin_on_a_cache_line(geometry: Geometry) -> None:
    end = SLOTS_OFFSET
    for slot in range(geometry.slots):
        assert geometry.slot_offset(slot) == end
        assert geometry.metadata_offset(slot) == end + SLOT_HEAD_BYTES
        assert geometry.payload_offset(slot) == geometry.metadata_offset(slot) + geometry.metadata_bytes
        assert geometry.payload_offset(slot) % CACHE_LINE == 0
        end = geometry.slot_offset(slot) + geometry.stride
        assert geometry.payload_offset(slot) + geometry.payload_bytes <= end
    assert geometry.segment_bytes == end


@pytest.mark.parametrize(
    ("geometry", "said"),
    [
        ((0, 64, 0), "0 slots: a channel has 1 to 64"),
        ((65, 64, 0), "65 slots"),
        ((1, 0, 0), "0 bytes of metadata"),
        ((1, 65, 0), "65 bytes of metadata: 64 to 65536, a multiple of 64"),
        ((1, MAX_METADATA_BYTES + 64, 0), "65600 bytes of metadata"),
        ((1, 64, -1), "-1 bytes of payload"),
        ((1, 64, MAX_PAYLOAD_BYTES + 1), "4294967297 bytes of payload: 0 to 4294967296"),
    ],
)
def test_a_geometry_that_makes_no_sense_is_refused_with_its_number(geometry: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Geometry(*geometry)


@given(st.integers(1, 2**57), st.integers(0, MAX_SLOTS - 1))
def test_a_sequence_is_the_number_of_its_request_above_six_bits_of_its_slot(number: int, slot: int) -> None:
    sequence = sequence_of(number, slot)

    assert sequence == number * 64 + slot
    assert (number_of(sequence), slot_of(sequence)) == (number, slot)


def test_the_next_request_of_a_slot_has_a_larger_sequence_whatever_the_slots() -> None:
    assert sequence_of(1, 0) == 0x40 and sequence_of(1, 63) == 0x7F and sequence_of(2, 0) == 0x80
    assert sequence_of(7, MAX_SLOTS - 1) < sequence_of(8, 0)
