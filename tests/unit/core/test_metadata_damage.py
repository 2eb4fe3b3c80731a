"""Metadata at its limits and damaged: depth, number, cut and changed bytes, and the memory of the reader."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmserve.metadata import DEPTH_LIMIT, METADATA_LIMIT, NODE_LIMIT, MetadataError, dump, load
from tests.support.metadata_bytes import (
    CODE,
    COSTLY,
    PROTO,
    REFUSED,
    VALID,
    WASTED,
    alone,
    dict_of,
    integer,
    is_sound,
    list_of,
    operations,
    refusal_of,
    text,
)

# Depth and number.

NESTS = {
    "lists": (b"](", b"e"),
    "tuples": (b"(", b"t"),
    "dicts": (b"}(\x8c\x00", b"u"),
    "of integers": (b"}(K\x07", b"u"),
}


@pytest.mark.fault("T36")
@pytest.mark.parametrize("nest", NESTS)
def test_deep_nesting_is_refused(nest: str) -> None:
    down, up = NESTS[nest]

    assert is_sound(alone(down * DEPTH_LIMIT + b"N" + up * DEPTH_LIMIT))
    for depth in (DEPTH_LIMIT + 1, 100, 1000, 8000):
        message = refusal_of(alone(down * depth + b"N" + up * depth))
        assert "within more than 32 containers" in message


@pytest.mark.fault("T36")
def test_deep_nesting_is_read_and_refused_in_a_thread_with_a_small_stack() -> None:
    found: list[object] = []

    def read() -> None:
        found.append(is_sound(alone(b"](" * DEPTH_LIMIT + b"N" + b"e" * DEPTH_LIMIT)))
        found.append(refusal_of(alone(b"](" * 20000)))

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=read)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()

    assert found[0] is True
    assert "within more than 32 containers" in str(found[1])


@pytest.mark.fault("T39")
@pytest.mark.parametrize("value", [b"N", b"(t", b"](e", b"}(u", integer(2**70)])
def test_values_are_counted_with_their_containers(value: bytes) -> None:
    assert is_sound(alone(list_of(value * (NODE_LIMIT - 1))))
    assert "more than 4096 values" in refusal_of(alone(list_of(value * NODE_LIMIT)))


def test_the_values_of_a_dict_are_counted_and_its_keys_are_not() -> None:
    entries = [text(f"{index}") + b"N" for index in range(NODE_LIMIT)]

    assert is_sound(alone(dict_of(*entries[1:])))
    assert "more than 4096 values" in refusal_of(alone(dict_of(*entries)))


def test_metadata_of_exactly_the_limit_is_read_and_one_byte_more_is_not() -> None:
    entries = [text(f"{index:01000}") + b"N" for index in range(65)]
    rest = METADATA_LIMIT - len(alone(dict_of(*entries))) - 3  # its operation, its length and NONE

    assert is_sound(alone(dict_of(*entries, text("a" * rest) + b"N")))
    assert "65537 bytes, the limit is 65536" in refusal_of(alone(dict_of(*entries, text("a" * (rest + 1)) + b"N")))


# Damage.


def test_metadata_cut_short_anywhere_is_refused() -> None:
    for length in range(len(VALID)):
        refusal_of(VALID[:length])


def test_any_byte_more_is_refused() -> None:
    for byte in range(256):
        assert "bytes follow" in refusal_of(VALID + bytes([byte]))


def test_any_byte_changed_gives_a_sound_tree_or_a_refusal() -> None:
    sound = 0
    for position in range(len(VALID)):
        for byte in {*range(0, 256, 15), *b".N(tu]e}KJMXQ\x80\x87\x8a\x8c", VALID[position], VALID[position] ^ 1}:
            sound += is_sound(VALID[:position] + bytes([byte]) + VALID[position + 1 :])

    assert sound > len(VALID)  # each position was once left as it was


def test_bytes_swapped_lost_and_repeated_give_a_sound_tree_or_a_refusal() -> None:
    chance = random.Random(20240229)
    sound = 0
    for _ in range(5_000):
        damaged = bytearray(VALID)
        for _ in range(chance.randint(1, 3)):
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
        sound += is_sound(bytes(damaged))

    assert sound > 0


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_give_a_sound_tree_or_a_refusal(data: bytes, with_head: bool) -> None:
    is_sound(alone(data) if with_head else data)


@settings(deadline=None, max_examples=400)
@given(operations(), st.sampled_from([(b"", b""), (b"(", b"t"), (b"](", b"e"), (b"}(", b"u")]))
def test_operations_in_any_order_give_a_sound_tree_or_a_refusal(stream: bytes, around: tuple[bytes, bytes]) -> None:
    is_sound(PROTO + around[0] + stream + around[1] + b".")


# Memory.


@pytest.mark.fault("T40")
@pytest.mark.parametrize("case", [*COSTLY, *WASTED])
def test_any_metadata_costs_its_reader_less_than_a_mebibyte(case: str) -> None:
    data = alone(COSTLY.get(case) or WASTED[case])
    assert len(data) <= METADATA_LIMIT
    if case in WASTED:
        refusal_of(data)
    else:
        assert is_sound(data)  # near the most that is accepted, not refused early on

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
    hostile = [alone(data) for data in [*CODE.values(), *WASTED.values()]] + [data for data, _ in REFUSED.values()]

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


def test_the_tree_that_is_damaged_above_is_read_as_it_was_written() -> None:
    assert dump(load(VALID)) == VALID
