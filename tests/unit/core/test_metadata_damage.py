"""Metadata at its limits and damaged: depth, cut and changed bytes, time and memory of the reader."""

import contextlib
import gc
import random
import struct
import threading
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmserve.metadata import DEPTH_LIMIT, METADATA_LIMIT, OPERATION_LIMIT, MetadataError, dump, load
from tests.support.metadata_bytes import (
    CODE,
    LIES,
    PROTO,
    VALID,
    alone,
    assert_sound,
    framed,
    integer,
    leaf,
    operations,
    refusal_of,
    shape,
    text,
    uint4,
)

# Depth, number and repetition.


@pytest.mark.fault("T36")
@pytest.mark.parametrize("depth", [DEPTH_LIMIT + 1, 100, 1000, 4000])
@pytest.mark.parametrize(
    ("down", "up"),
    [(b"]", b"a"), (b"", b"\x85"), (b"(", b"t"), (b"](", b"e"), (b"}\x8c\x00", b"s"), (b"}(\x8c\x00", b"u")],
    ids=["APPEND", "TUPLE1", "TUPLE", "APPENDS", "SETITEM", "SETITEMS"],
)
def test_deep_nesting_is_refused(down: bytes, up: bytes, depth: int) -> None:
    message = refusal_of(alone(down * depth + b"N" + up * depth))

    assert "within more than 32 containers" in message or "the last of 4096 operations" in message


@pytest.mark.parametrize("depth", [10**4, 6 * 10**4, 10**5])
@pytest.mark.parametrize("step", [b"(", b"]", b"}", b")", b"\x85"], ids=["MARK", "list", "dict", "tuple", "TUPLE1"])
def test_the_operations_end_before_any_depth_is_a_danger(step: bytes, depth: int) -> None:
    assert "4096 operations" in (message := refusal_of(alone(b"N" + step * depth))) or "limit is 65536" in message


@pytest.mark.fault("T36")
def test_deep_nesting_is_refused_in_a_thread_with_a_small_stack() -> None:
    refusals: list[str] = []
    before = threading.stack_size(64 * 1024)
    try:
        thread = threading.Thread(target=lambda: refusals.append(refusal_of(alone(b"N" + b"\x85" * 4000))))
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()

    assert "within more than 32 containers" in refusals[0]


def test_operations_are_counted_from_PROTO_to_STOP() -> None:
    most = OPERATION_LIMIT - 6

    assert load(framed(b"](" + b"N" * most + b"e.")) == ([None] * most, [])
    assert "last of 4096 operations" in refusal_of(framed(b"](" + b"N" * (most + 1) + b"e."))
    assert load(alone(b"](" + b"N" * (most + 1) + b"e")) == ([None] * (most + 1), [])


@pytest.mark.fault("T39")
def test_a_string_cannot_be_multiplied_through_the_memo() -> None:
    """64 KiB would become 240 MiB as soon as anybody wrote the tree out."""
    data = alone(b"](" + text("ha" * 25000) + b"\x94" + b"h\x00" * 4000 + b"e")
    assert len(data) < METADATA_LIMIT

    assert "out of the memo, the limit is 65536" in refusal_of(data)


# Damage.


@pytest.mark.parametrize("data", [VALID, PROTO + VALID[11:]], ids=["framed", "unframed"])
def test_metadata_cut_short_anywhere_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        refusal_of(data[:length])


def test_any_byte_more_is_refused() -> None:
    for byte in range(256):
        refusal_of(VALID + bytes([byte]))
        refusal_of(PROTO + VALID[11:] + bytes([byte]))


def test_any_byte_changed_gives_a_sound_tree_or_a_refusal() -> None:
    sound = 0
    for position in range(len(VALID)):
        for byte in range(256):
            damaged = VALID[:position] + bytes([byte]) + VALID[position + 1 :]
            try:
                tree, leaves = load(damaged)
            except MetadataError:
                continue
            assert_sound(damaged, tree, leaves)
            again = dump(tree)
            assert dump(load(again)[0]) == again
            sound += 1

    assert sound > len(VALID)  # each position was once left as it was


def test_bytes_swapped_lost_and_repeated_give_a_sound_tree_or_a_refusal() -> None:
    chance = random.Random(20240229)
    start = PROTO + VALID[11:]
    sound = 0
    for _ in range(20_000):
        damaged = bytearray(start)
        for _ in range(chance.randint(1, 4)):
            here, there = sorted(chance.sample(range(2, len(damaged)), 2))
            match chance.randrange(4):
                case 0:
                    damaged[here], damaged[there] = damaged[there], damaged[here]
                case 1:
                    del damaged[here : min(there, here + 12)]
                case 2:
                    damaged[here:here] = damaged[here : min(there, here + 40)]
                case _:
                    damaged[here] = chance.choice(b"(]})tQuesa\x85\x86\x87\x8cKN\x94h.")
        try:
            tree, leaves = load(bytes(damaged))
        except MetadataError:
            continue
        assert_sound(bytes(damaged), tree, leaves)
        sound += 1

    assert sound > 0


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_give_a_sound_tree_or_a_refusal(data: bytes, with_head: bool) -> None:
    data = alone(data) if with_head else data
    try:
        tree, leaves = load(data)
    except MetadataError:
        return
    assert_sound(data, tree, leaves)


@settings(deadline=None, max_examples=400)
@given(operations(), st.sampled_from([b"", b"t", b"\x85", b"\x86"]), st.booleans())
def test_operations_in_any_order_give_a_sound_tree_or_a_refusal(stream: bytes, close: bytes, with_frame: bool) -> None:
    stream = (b"(" if close == b"t" else b"") + stream + close + b"."
    data = framed(stream) if with_frame else PROTO + stream
    try:
        tree, leaves = load(data)
    except MetadataError:
        return
    assert_sound(data, tree, leaves)


# Time and memory.


COSTLY = {
    "text of 1 byte": text("a" * 65000),
    "text of 4 bytes for one emoji": text("a" * 65000 + "🤖"),
    "bytes": b"B" + uint4(65000) + bytes(65000),
    "lists": b"](" + b"]" * 4088 + b"e",
    "lists of one": b"](" + b"]Na" * 1362 + b"e",
    "dicts": b"](" + b"}" * 4088 + b"e",
    "dicts of one": text("a") + b"\x94](" + b"}h\x00Ns" * 1021 + b"e\x86",
    "tuples of one": b"](" + b"N\x85" * 2044 + b"e",
    "wide ints": b"](" + integer(2**126) * 3600 + b"e",
    "floats": b"](" + (b"G" + bytes(8)) * 4088 + b"e",
    "long keys": b"}(" + b"".join(text(f"{index:01000}") + b"N" for index in range(60)) + b"u",
    "many keys": b"}(" + b"".join(text(f"{index}") + b"N" for index in range(2044)) + b"u",
    "items one by one": b"}" + b"".join(text(f"{index}") + b"Ns" for index in range(1363)),
    "the memo": b"](" + text("a" * 1000) + b"\x94" * 4000 + b"h\x00" * 60 + b"e",
    "leaves": b"](" + b"".join(leaf(struct.pack("<cH", b"M", index), shape=b")") for index in range(583)) + b"e",
    "dimensions": b"]("
    + b"".join(leaf(struct.pack("<cH", b"M", index), shape=shape(*[1] * 16)) for index in range(165))
    + b"e",
}
WASTED = {
    "marks": b"(" * 4090,
    "lists left": b"]" * 4090,
    "dicts left": b"}" * 4090,
    "deep tuples": b"N" + b"\x85" * 4090,
    "deep lists": b"]" * 2045 + b"a" * 2044,
    "deep dicts": b"}\x8c\x00" * 1300 + b"N" + b"s" * 1300,
    "a huge shape": leaf(shape=shape(*[2**126] * 16)),
    "strings out of the memo": b"](" + text("ha" * 25000) + b"\x94" + b"h\x00" * 4000 + b"e",
}


@pytest.mark.fault("T40")
@pytest.mark.parametrize("case", [*COSTLY, *WASTED])
def test_any_metadata_costs_its_reader_less_than_a_mebibyte(case: str) -> None:
    data = alone(COSTLY.get(case) or WASTED[case])
    assert len(data) <= METADATA_LIMIT
    if case in WASTED:
        refusal_of(data)
    else:
        load(data)  # it is the most that can be had, not something refused early on

    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        with contextlib.suppress(MetadataError):
            load(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak - before < 2**20


def test_refusals_leave_nothing_behind() -> None:
    hostile = [alone(data) for data in [*CODE.values(), *WASTED.values()]] + [data for data, _ in LIES.values()]

    def refuse_all() -> None:
        for data in hostile:
            with contextlib.suppress(MetadataError):
                load(data)

    refuse_all()
    tracemalloc.start()
    try:
        refuse_all()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5):
            refuse_all()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 16 * 1024
