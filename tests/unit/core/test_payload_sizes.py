"""Sizes at the front of a payload, which the other side wrote: each backend lays the same leaves out, or refuses."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmserve import pure
from shmserve.codec import Decoder, SlotMemory
from shmserve.metadata import DTYPES, LEAF_BYTES_LIMIT, Leaf, MetadataError, dump
from shmserve.metadata_leaf import NUMBERS
from tests.support.metadata_bytes import leaves
from tests.support.native import NATIVE, core

DECODERS: list[Any] = [pure.TreeDecoder, core.TreeDecoder] if NATIVE else [pure.TreeDecoder]
each_backend = pytest.mark.parametrize("decoder_type", DECODERS, ids=lambda kind: kind.__module__)
_PAYLOAD_LIMIT = 1 << 32
_ROOM = 1 << 16
ARRAY = Leaf("array", "<f4", 2)


def places(structure: Sequence[Leaf], sizes: Sequence[int]) -> tuple[list[tuple[Leaf, int, list[int]]], int] | None:
    """Return (leaf, offset, shape) of each leaf and the bytes of the payload by the rules of docs/reference/wire-format.md."""
    rest, found = list(sizes), []
    end, device_end = 8 * (len(sizes) + sum(leaf.kind in NUMBERS for leaf in structure)), 0
    for leaf in structure:
        shape, rest = rest[: leaf.dimensions], rest[leaf.dimensions :]
        if leaf.kind in NUMBERS:
            continue
        if DTYPES[leaf.dtype] * math.prod(length or 1 for length in shape) >= 1 << 48:
            return None
        size = DTYPES[leaf.dtype] * math.prod(shape)
        if leaf.kind == "device":
            offset = (device_end + 255) // 256 * 256
            device_end = offset + size
        else:
            offset = (end + 63) // 64 * 64
            end = offset + size
        found.append((leaf, offset, shape))
    return (found, end) if max(end, device_end) <= _PAYLOAD_LIMIT else None


def memory_of(sizes: Sequence[int], room: int) -> npt.NDArray[np.uint8]:
    memory: npt.NDArray[np.uint8] = np.arange(room, dtype=np.uint64).astype(np.uint8) & np.uint8(
        0x7F
    )  # any text of it is UTF-8
    front = struct.pack(f"<{len(sizes)}Q", *sizes)[:room]
    memory[: len(front)] = np.frombuffer(front, np.uint8)
    return memory


def shown(value: Any) -> object:
    """Return a value that is equal for equal bytes: NaN too."""
    if isinstance(value, (np.ndarray, np.generic)):
        return type(value), value.dtype.str, value.shape, value.tobytes()
    if type(value) is list:
        return [shown(entry) for entry in value]
    return type(value), struct.pack("d", value) if type(value) is float else value


def decoded(decoder_type: Any, metadata: bytes, memory: npt.NDArray[np.uint8], payload_bytes: int) -> object:
    """Return the tree and the place of each view, which lies where it should; None if the payload is refused."""
    decoder = decoder_type(metadata)
    try:
        views = decoder.views(memory, payload_bytes)
    except ValueError:
        if decoder.is_complete:
            with pytest.raises(ValueError):
                decoder.decode(memory, payload_bytes)
            with pytest.raises(ValueError):
                decoder.decode_over(memory, payload_bytes, [np.zeros(1)] * metadata.count(b"array"), None)
        return None
    start = memory.__array_interface__["data"][0]
    at = [
        (view.shape, view.dtype.str, view.__array_interface__["data"][0] - start if view.size else -1) for view in views
    ]
    if not decoder.is_complete:
        return at
    over = decoder.decode_over(memory, payload_bytes, views, None)
    tree = decoder.decode(memory, payload_bytes)
    assert shown(tree) == shown(over)
    return at, shown(tree)


def assert_read_by_the_rules(structure: list[Leaf], sizes: list[int], payload_bytes: int, room: int) -> bool:
    """Compare every backend with the rules; return whether the payload is accepted."""
    metadata = dump(structure)
    by_rule = places(structure, sizes)
    accepted = by_rule is not None and by_rule[1] == payload_bytes <= room
    memory = memory_of(sizes, room)
    found = [decoded(decoder_type, metadata, memory, payload_bytes) for decoder_type in DECODERS]

    assert all((outcome is not None) == accepted for outcome in found)
    assert all(outcome == found[0] for outcome in found)
    if accepted:
        assert by_rule is not None
        at: Any = found[0][0] if type(found[0]) is tuple else found[0]
        assert at == [
            (tuple(shape), "<u2" if leaf.dtype == "<bf2" else leaf.dtype, offset if math.prod(shape) else -1)
            for leaf, offset, shape in by_rule[0]
            if leaf.kind == "array"
        ]
    return accepted


_hostile = st.sampled_from(
    [0, 1, 2, 3, 2**16, 2**31, 2**32 - 1, 2**32, 2**47, 2**48 - 1, 2**48, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
)
_words = st.integers(0, 2**64 - 1)


@settings(deadline=None, max_examples=150)
@given(st.data(), st.lists(leaves(), max_size=5))
def test_payloads_are_read_by_the_rules_whatever_their_sizes_say(data: st.DataObject, structure: list[Leaf]) -> None:
    count = sum(leaf.dimensions for leaf in structure)
    length = data.draw(st.sampled_from([st.integers(0, 3), st.integers(0, 5) | _hostile, _hostile | _words]))
    sizes = data.draw(st.lists(length, min_size=count, max_size=count))
    by_rule = places(structure, sizes)
    described = by_rule[1] if by_rule is not None else data.draw(st.integers(0, _ROOM))
    claimed = data.draw(
        st.just(described)
        | st.integers(-70, 70).map(lambda more: max(0, described + more))
        | st.sampled_from([0, 1, 7, 8, 64, _ROOM, 2**32, 2**32 + 64, 2**63, 2**64 - 1])
    )
    room = min(max(described + data.draw(st.sampled_from([-65, -1, 0, 1, 64])), 0), _ROOM)

    assert_read_by_the_rules(structure, sizes, claimed, room)


@settings(deadline=None, max_examples=80)
@given(st.data(), st.lists(leaves(), min_size=1, max_size=6))
def test_a_payload_of_exactly_its_sizes_is_read_by_every_backend(data: st.DataObject, structure: list[Leaf]) -> None:
    sizes = [data.draw(st.integers(0, 2)) for leaf in structure for _ in range(leaf.dimensions)]
    by_rule = places(structure, sizes)
    assert by_rule is not None
    if by_rule[1] > _ROOM << 5:
        return

    assert assert_read_by_the_rules(structure, sizes, by_rule[1], by_rule[1])
    assert not assert_read_by_the_rules(structure, sizes, by_rule[1] + 1, by_rule[1] + 1)
    assert not assert_read_by_the_rules(structure, sizes, by_rule[1], by_rule[1] - 1)


#: Structure and sizes that no payload can have; 96 bytes would hold the sizes, and one small leaf.
IMPOSSIBLE = {
    "2**63": ([ARRAY], [1, 2**63]),
    "2**64 - 1": ([ARRAY], [2**64 - 1, 1]),
    "a product of 0 modulo 2**64": ([ARRAY], [2**32, 2**32]),
    "a product of 16 modulo 2**64": ([Leaf("array", "<f4", 3)], [2**62, 2**62, 4]),
    "a product of 32 modulo 2**64": ([ARRAY], [2**61 + 1, 8]),
    "bytes that are 0 modulo 2**64": ([Leaf("array", "<f8", 1)], [2**61]),
    "bytes that are 32 modulo 2**64": ([Leaf("array", "<f8", 1)], [2**61 + 4]),
    "nothing, of 2**63": ([ARRAY], [0, 2**63]),
    "nothing, after 2**63": ([ARRAY], [2**63, 0]),
    "nothing, of 2**64 - 1": ([ARRAY], [0, 2**64 - 1]),
    "nothing, of a product beyond": ([Leaf("array", "|u1", 3)], [2**24, 0, 2**24]),
    "a leaf of 2**48 bytes": ([Leaf("str", "|u1", 1)], [2**48]),
    "sums that are 0 modulo 2**64": ([Leaf("str", "|u1", 1)] * 3, [2**63, 2**63 - 64, 0]),
    "many leaves of almost 2**48": ([Leaf("bytes", "|u1", 1)] * 12, [2**48 - 64] * 12),
    "2**32 bytes behind the sizes": ([Leaf("bytes", "|u1", 1)], [2**32]),
    "a list of 2**61 numbers": ([Leaf("list", "<f8", 1)], [2**61 + 4]),
    "more GPU memory than a slot can have": ([Leaf("device", "|u1", 1)], [2**32 + 1]),
    "GPU memory of 2**63": ([Leaf("device", "<f4", 2)], [1, 2**63]),
    "GPU memory of a product of 0 modulo 2**64": ([Leaf("device", "<f4", 2)], [2**32, 2**32]),
}


@pytest.mark.fault("T06")
@each_backend
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_sizes_that_no_payload_can_have_are_refused(case: str, decoder_type: Any) -> None:
    structure, sizes = IMPOSSIBLE[case]
    memory = memory_of(sizes, 4096)

    for payload_bytes in (*range(0, 160, 4), 4096):
        assert decoded(decoder_type, dump(structure), memory, payload_bytes) is None


@pytest.mark.fault("T06")
def test_an_empty_array_may_have_other_lengths_up_to_the_limit_of_a_leaf() -> None:
    assert assert_read_by_the_rules([Leaf("array", "|u1", 2)], [0, LEAF_BYTES_LIMIT - 1], 64, 64)
    assert not assert_read_by_the_rules([Leaf("array", "|u1", 2)], [0, LEAF_BYTES_LIMIT], 64, 64)
    assert assert_read_by_the_rules([Leaf("array", "<c16", 3)], [2**22, 0, 2**21], 64, 64)
    assert not assert_read_by_the_rules([Leaf("array", "<c16", 3)], [2**22, 0, 2**22], 64, 64)


@each_backend
def test_the_largest_payload_is_read_and_one_byte_more_is_refused(decoder_type: Any) -> None:
    no_reserve = 0x4000
    mapped = mmap.mmap(-1, _PAYLOAD_LIMIT + 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    memory = np.frombuffer(mapped, np.uint8)
    decoder = decoder_type(dump([Leaf("array", "|u1", 1), Leaf("array", "<f4", 1)]))
    words = memory[:16].view(np.uint64)

    words[:] = (_PAYLOAD_LIMIT - 128, 16)
    assert [view.nbytes for view in decoder.views(memory, _PAYLOAD_LIMIT)] == [_PAYLOAD_LIMIT - 128, 64]
    words[0] += 1  # the second leaf begins on the next line
    for payload_bytes in (_PAYLOAD_LIMIT, _PAYLOAD_LIMIT + 64):
        with pytest.raises(ValueError):
            decoder.views(memory, payload_bytes)


@each_backend
def test_as_many_sizes_and_leaves_as_a_structure_can_have_are_read(decoder_type: Any) -> None:
    structure = [Leaf("array", "|u1", 16)] * 3800
    words = 8 * 16 * 3800
    memory = memory_of([1] * 16 * 3800, words + 64 * 3800)

    views = decoder_type(dump(structure)).views(memory, words + 64 * 3799 + 1)

    assert len(views) == 3800
    assert [int(view.ravel()[0]) for view in views] == [int(memory[words + 64 * index]) for index in range(3800)]
    with pytest.raises(ValueError):
        decoder_type(dump(structure)).views(memory[: words - 1], words - 1)


def test_a_decoder_of_the_codec_refuses_them_as_metadata() -> None:
    metadata = dump({"points": ARRAY, "task": Leaf("str", "|u1", 1)})
    slot = SlotMemory(np.frombuffer(metadata, np.uint8), memory_of([2, 3, 4], 256))
    decoder = Decoder()

    assert decoder.decode(slot, 1, len(metadata), 132)["points"].shape == (2, 3)
    for payload_bytes in (0, 23, 131, 133, 257, 2**32 + 1):
        with pytest.raises(MetadataError):
            decoder.decode(slot, 1, len(metadata), payload_bytes)
    slot.payload[128] = 0xFF
    with pytest.raises(MetadataError, match=r"UTF-8|utf-8"):
        decoder.decode(slot, 1, len(metadata), 132)
