"""The safe form of metadata: what goes in comes out, and what it looks like as bytes."""

import io
import math
import pickle
import struct
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmserve.metadata import (
    DIMENSION_LIMIT,
    DTYPES,
    Leaf,
    dump,
    load,
)


def leaves() -> st.SearchStrategy[Leaf]:
    dtypes = st.sampled_from(sorted(DTYPES))
    shapes = st.lists(st.integers(0, 4000), max_size=3).map(tuple)
    lengths = st.integers(0, 2**40).map(lambda n: (n,))
    return st.one_of(
        st.builds(Leaf, st.just("array"), dtypes, shapes),
        st.builds(Leaf, st.just("array"), dtypes, st.lists(st.integers(0, 3), max_size=DIMENSION_LIMIT).map(tuple)),
        st.builds(Leaf, st.just("scalar"), dtypes, st.just(())),
        st.sampled_from([Leaf("int", "<i8", ()), Leaf("float", "<f8", ()), Leaf("bool", "<i8", ())]),
        st.builds(Leaf, st.sampled_from(["bytes", "str"]), st.just("|u1"), lengths),
    )


def trees() -> st.SearchStrategy[object]:
    constants = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**127), 2**127 - 1),
        st.floats(),
        st.text(max_size=300),
        st.binary(max_size=300),
    )
    return st.recursive(
        st.one_of(constants, leaves()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=6),
            st.lists(inner, max_size=6).map(tuple),
            st.dictionaries(st.text(max_size=20), inner, max_size=6),
        ),
        max_leaves=40,
    )


def walk(tree: Any) -> Iterator[Leaf]:
    if type(tree) is Leaf:
        yield tree
    elif type(tree) is dict:
        for value in tree.values():
            yield from walk(value)
    elif type(tree) in (list, tuple):
        for value in tree:
            yield from walk(value)


class StandardUnpickler(pickle.Unpickler):
    """Anybody else's reader of the same bytes."""

    def persistent_load(self, persistent_id: Any) -> object:
        _, kind, dtype, shape = persistent_id
        return Leaf(kind, dtype, shape)

    def find_class(self, module: str, name: str) -> NoReturn:
        raise AssertionError(f"metadata names {module}.{name}")


# Round trips. Trees are compared as repr: it tells 1 from True and 1.0, 0.0 from -0.0, has NaN equal to itself, and
# keeps the order of keys.


@settings(deadline=None, max_examples=200)
@given(trees())
def test_a_tree_comes_back_with_its_leaves_in_the_order_of_a_walk(tree: object) -> None:
    result, found = load(dump(tree))

    assert repr(result) == repr(tree)
    assert found == list(walk(tree))
    assert all(ours is theirs for ours, theirs in zip(found, walk(result), strict=True))


@settings(deadline=None, max_examples=200)
@given(trees())
def test_a_standard_unpickler_reads_the_same_tree(tree: object) -> None:
    metadata = dump(tree)

    assert repr(StandardUnpickler(io.BytesIO(metadata)).load()) == repr(tree)


@settings(deadline=None, max_examples=100)
@given(trees())
def test_a_tree_that_was_loaded_is_dumped_to_the_same_bytes(tree: object) -> None:
    metadata = dump(tree)

    assert dump(load(metadata)[0]) == metadata


def test_equal_trees_give_equal_bytes_whether_or_not_they_share_parts() -> None:
    name = "left"
    shared = [1, 2]
    leaf = Leaf("float", "<f8", ())

    one = dump({"a": [name, shared, leaf], "b": [name, shared, leaf]})
    other = dump({"a": ["left", [1, 2], leaf], "b": [str(b"left", "ascii"), [1, 2], Leaf("float", "<f8", ())]})

    assert one == other


@pytest.mark.parametrize("value", [math.nan, -0.0, math.inf, 5e-324])
def test_a_float_keeps_its_bits(value: float) -> None:
    result, _ = load(dump(value))

    assert type(result) is float
    assert struct.pack("<d", result) == struct.pack("<d", value)


@pytest.mark.parametrize("value", [0, 255, 256, 65535, 65536, 2**31, -1, -(2**31) - 1, 2**127 - 1, -(2**127)])
def test_an_int_of_any_width_up_to_16_bytes_comes_back(value: int) -> None:
    assert load(dump(value)) == (value, [])


def test_a_leaf_that_is_met_twice_is_two_leaves() -> None:
    leaf = Leaf("array", "<f4", (7,))

    tree, found = load(dump({"left": leaf, "right": leaf}))

    assert tree == {"left": leaf, "right": leaf}
    assert found == [leaf, leaf]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 999, 1000, 1001, 1999])
@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_containers_come_back_at_each_size_where_the_pickler_writes_them_otherwise(kind: type, size: int) -> None:
    tree = {str(index): index for index in range(size)} if kind is dict else kind(range(size))

    assert load(dump(tree)) == (tree, [])


def test_a_memoryview_is_read_like_bytes_and_not_referred_to_afterwards() -> None:
    memory = bytearray(dump({"key": [b"constant", "text", Leaf("int", "<i8", ())]}))

    tree, _ = load(memoryview(memory))
    memory[:] = bytes(len(memory))

    assert tree == {"key": [b"constant", "text", Leaf("int", "<i8", ())]}


def test_leaves_are_equal_by_value_and_can_be_keys() -> None:
    one, same = Leaf("array", "<f4", (2, 3)), Leaf("array", "<f4", (2, 3))

    assert one == same
    assert len({one, same}) == 1
    assert one != Leaf("array", "<f4", (3, 2))
    assert one != Leaf("array", "<i4", (2, 3))
    assert Leaf("int", "<i8", ()) != Leaf("bool", "<i8", ())
    assert one != ("array", "<f4", (2, 3))


# The bytes, written out by hand.

BY_HAND = [
    (None, b"\x80\x05N."),
    ({}, b"\x80\x05}."),
    (True, b"\x80\x05\x88."),
    ({"a": 1}, b"\x80\x05\x95\x08\0\0\0\0\0\0\0}\x8c\x01aK\x01s."),
    ([1.5, -1], b"\x80\x05\x95\x12\0\0\0\0\0\0\0](G?\xf8\0\0\0\0\0\0J\xff\xff\xff\xffe."),
    ((b"x", "é"), b"\x80\x05\x95\x09\0\0\0\0\0\0\0C\x01x\x8c\x02\xc3\xa9\x86."),
    (2**40, b"\x80\x05\x95\x09\0\0\0\0\0\0\0\x8a\x06\0\0\0\0\0\x01."),
    (
        {"image": Leaf("array", "<f4", (2, 300)), "step": Leaf("int", "<i8", ())},
        b"".join(
            [
                b"\x80\x05\x95\x38\0\0\0\0\0\0\0",  # PROTO 5, FRAME of 56 bytes
                b"}(",  # EMPTY_DICT, MARK
                b"\x8c\x05image",
                b"(K\x00\x8c\x05array\x8c\x03<f4K\x02M\x2c\x01\x86tQ",  # MARK, 0, array, <f4, 2, 300, TUPLE2, TUPLE, id
                b"\x8c\x04step",
                b"(K\x01\x8c\x03int\x8c\x03<i8)tQ",  # MARK, 1, int, <i8, EMPTY_TUPLE, TUPLE, id
                b"u.",  # SETITEMS, STOP
            ]
        ),
    ),
]


@pytest.mark.parametrize(("tree", "metadata"), BY_HAND, ids=[repr(tree)[:20] for tree, _ in BY_HAND])
def test_the_bytes_are_those_written_out_by_hand(tree: object, metadata: bytes) -> None:
    assert dump(tree) == metadata
    assert repr(load(metadata)[0]) == repr(tree)


SPELLED_OTHERWISE = {
    "without a frame": (b"\x80\x05}\x8c\x01aK\x01s.", {"a": 1}),
    "long lengths": (b"\x80\x05X\x02\0\0\0hiB\x01\0\0\0x\x86.", ("hi", b"x")),
    "wide numbers": (b"\x80\x05(J\x07\0\0\0M\x07\0\x8a\x00\x8a\x03\x07\0\0t.", (7, 7, 0, 7)),
    "items one by one": (b"\x80\x05}\x8c\x01aNs\x8c\x01b\x88s.", {"a": None, "b": True}),
    "items in two lots": (b"\x80\x05](NNe(Ne.", [None, None, None]),
    "an empty lot": (b"\x80\x05](e.", []),
    "a short tuple behind a mark": (b"\x80\x05(K\x01t.", (1,)),
    "strings out of the memo": (b"\x80\x05\x8c\x01a\x94h\x00j\0\0\0\0\x87.", ("a", "a", "a")),
}


@pytest.mark.parametrize("case", SPELLED_OTHERWISE)
def test_equivalent_opcodes_of_another_pickler_are_read(case: str) -> None:
    metadata, tree = SPELLED_OTHERWISE[case]

    assert pickle.loads(metadata) == tree
    assert load(metadata) == (tree, [])


def test_every_dtype_of_numpy_in_the_table_has_the_size_that_numpy_gives_it() -> None:
    sizes = {name: np.dtype(name).itemsize for name in DTYPES if name != "<bf2"}

    assert sizes == {name: size for name, size in DTYPES.items() if name != "<bf2"}
    assert {np.dtype(name).str for name in sizes} == set(sizes)
    assert DTYPES["<bf2"] == 2
