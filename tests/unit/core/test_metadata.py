"""The safe form of metadata: round trips, the bytes written out by hand, and the two writers and readers compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmserve.carried_values import carried
from shmserve.errors import UnsupportedType
from shmserve.flatten import flatten
from shmserve.metadata import DTYPES, Leaf, dump, load
from shmserve.pure.tree_encoder import TreeEncoder as PureEncoder
from tests.support.metadata_bytes import VALID, alone, integer, is_sound, leaf, long_text, native_only, text, trees
from tests.support.native import NATIVE, core

# Round trips. Trees are compared as repr, which keeps the order of keys and tells a list from a tuple.


@settings(deadline=None, max_examples=60)
@given(trees())
def test_a_tree_comes_back_and_has_one_form_for_every_reader(tree: object) -> None:
    metadata = dump(tree)

    assert repr(load(metadata)) == repr(tree)
    assert is_sound(metadata)


def test_equal_trees_give_equal_bytes_whether_or_not_they_share_parts() -> None:
    shared, leaf = [None, None], Leaf("float", "<f8", 0)

    one = dump({"a": [shared, leaf], "b": [shared, leaf]})
    other = dump({"a": [[None, None], leaf], "b": [[None, None], Leaf("float", "<f8", 0)]})

    assert one == other
    assert load(one)["a"][0] is not load(one)["b"][0]


def test_the_order_of_keys_is_part_of_the_structure() -> None:
    assert dump({"a": None, "b": None}) != dump({"b": None, "a": None})


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64 - 1, -(2**64), 2**100, -(2**120), 2**127 - 1, -(2**127)])
def test_an_int_beyond_64_bits_up_to_16_bytes_comes_back(value: int) -> None:
    assert load(dump(value)) == value
    assert is_sound(dump(value))


def test_a_memoryview_is_read_like_bytes_and_not_referred_to_afterwards() -> None:
    memory = bytearray(dump({"key": [Leaf("int", "<i8", 0)]}))

    tree = load(memoryview(memory))
    memory[:] = bytes(len(memory))

    assert tree == {"key": [Leaf("int", "<i8", 0)]}


# The bytes, written out by hand.

_ACTION = b"\x8c\x05array\x8c\x03<f4K\x02\x87Q"  # array, <f4, 2 dimensions, TUPLE3, BINPERSID
BY_HAND: dict[str, tuple[object, bytes]] = {
    "None": (None, b"\x80\x05N."),
    "an empty dict": ({}, b"\x80\x05}(u."),
    "an empty list": ([], b"\x80\x05](e."),
    "an empty tuple": ((), b"\x80\x05(t."),
    "a leaf": (Leaf("array", "<f4", 2), b"\x80\x05" + _ACTION + b"."),
    "a dict": ({"é": [Leaf("array", "<f4", 2), None]}, b"\x80\x05}(\x8c\x02\xc3\xa9](" + _ACTION + b"Neu."),
    "a long": (2**63, b"\x80\x05\x8a\x09\0\0\0\0\0\0\0\x80\0."),
}
#: Each width of a key, at its boundaries.
INTEGER_KEYS = {
    0: b"K\0",
    255: b"K\xff",
    256: b"M\x00\x01",
    65535: b"M\xff\xff",
    65536: b"J\0\0\x01\0",
    2**31 - 1: b"J\xff\xff\xff\x7f",
    2**31: b"\x8a\x05\0\0\0\x80\0",
    2**32 - 1: b"\x8a\x05\xff\xff\xff\xff\0",
    2**39 - 1: b"\x8a\x05\xff\xff\xff\xff\x7f",
    2**39: b"\x8a\x06\0\0\0\0\x80\0",
    2**63 - 1: b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    -1: b"J\xff\xff\xff\xff",
    -256: b"J\0\xff\xff\xff",
    -(2**31): b"J\0\0\0\x80",
    -(2**31) - 1: b"\x8a\x05\xff\xff\xff\x7f\xff",
    -(2**39): b"\x8a\x05\0\0\0\0\x80",
    -(2**63): b"\x8a\x08\0\0\0\0\0\0\0\x80",
}
TEXT_KEYS = {"": b"\x8c\x00", "a" * 255: b"\x8c\xff" + b"a" * 255, "a" * 256: b"X\0\x01\0\0" + b"a" * 256}


@pytest.mark.parametrize("case", BY_HAND)
def test_the_bytes_are_those_written_out_by_hand(case: str) -> None:
    tree, metadata = BY_HAND[case]

    assert dump(tree) == metadata
    assert repr(load(metadata)) == repr(tree)
    assert is_sound(metadata)


@pytest.mark.parametrize(
    ("key", "operation"), [*INTEGER_KEYS.items(), *TEXT_KEYS.items()], ids=lambda case: repr(case)[:24]
)
def test_a_key_of_each_width_has_the_shortest_form_from_every_writer(key: str | int, operation: bytes) -> None:
    metadata = alone(b"}(" + operation + b"Nu")

    assert dump({key: None}) == metadata
    assert load(metadata) == {key: None}
    assert is_sound(metadata)
    assert_written_alike({key: None}, {key: None})


def test_the_longest_key_comes_back() -> None:
    assert load(dump({"é" * 512: None})) == {"é" * 512: None}
    assert is_sound(alone(b"}(" + long_text(b"a" * 1024) + b"Nu"))


class _HashlessType(type):
    __hash__ = None  # type: ignore[assignment]


class _OfHashlessType(metaclass=_HashlessType):
    pass


@pytest.mark.parametrize("form", [lambda value: [value], lambda value: [1, value], lambda value: {value: 1}])
def test_a_value_whose_type_has_no_hash_is_refused_with_its_place(form: Any) -> None:
    tree = form(_OfHashlessType())

    with pytest.raises(UnsupportedType, match=r"^tree(\[\d\])?: an object of type"):
        flatten(tree, "tree")
    assert PureEncoder(carried).describe(tree) is None


# The writers: of Python, of the native core, and the form of the structure by this test's own rules.

_numbers = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans()
_arrays = st.sampled_from(
    [
        np.zeros((5, 3), np.float32),
        np.zeros((0, 4), np.uint8),
        np.array(2.5),
        np.zeros([1] * 16),
        np.zeros(3, np.complex64),
    ]
)
_scalars = st.sampled_from([np.float32(1.5), np.bool_(True), np.int8(-1), np.complex128(1j), np.float16(0)])
_longs = st.sampled_from([2**63, -(2**63) - 1, 2**100, -(2**127)])
_texts = st.text(max_size=5) | st.binary(max_size=300) | st.just("\ud800")
_lists = st.lists(st.integers(-(2**63), 2**63 - 1)) | st.lists(st.floats()) | st.lists(st.booleans())
_values = st.one_of(_numbers, _arrays, _scalars, _longs, _texts, _lists, st.none())
_keys = st.text(max_size=4) | st.integers(-(2**63), 2**63 - 1) | st.just("k" * 256)
values = st.recursive(
    _values,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.lists(inner, max_size=5).map(tuple), st.dictionaries(_keys, inner, max_size=5)
    ),
    max_leaves=15,
)


def structure(tree: Any) -> Any:
    """Return the tree with a leaf for each value in the payload."""
    kind = type(tree)
    if kind is dict:
        return {key: structure(value) for key, value in tree.items()}
    if kind is list and tree and {type(value) for value in tree} in ({int}, {float}, {bool}):
        dtype = {int: "<i8", float: "<f8", bool: "|b1"}[type(tree[0])]
        if dtype != "<i8" or all(-(2**63) <= value < 2**63 for value in tree):
            return Leaf("list", dtype, 1)
    if kind in (list, tuple):
        return kind(structure(value) for value in tree)
    if kind in (str, bytes):
        return Leaf(kind.__name__, "|u1", 1)
    if kind is np.ndarray:
        return Leaf("array", tree.dtype.str, tree.ndim)
    if isinstance(tree, np.generic):
        return Leaf("scalar", tree.dtype.str, 0)
    if kind in (int, float, bool) and -(2**63) <= (tree if kind is int else 0) < 2**63:
        return Leaf(kind.__name__, "<f8" if kind is float else "<i8", 0)
    return tree  # None, and an int beyond 64 bits


def assert_written_alike(tree: object, expected: object) -> None:
    assert flatten(tree, "tree").metadata == dump(expected)
    assert PureEncoder(carried).describe(tree) == dump(expected)
    if NATIVE:
        assert core.TreeEncoder(carried).describe(tree) == dump(expected)


@settings(deadline=None, max_examples=150)
@given(values)
def test_every_writer_writes_the_same_bytes_for_a_tree(tree: object) -> None:
    assert_written_alike(tree, structure(tree))


@settings(deadline=None, max_examples=60)
@given(trees(), st.randoms(use_true_random=False))
def test_metadata_changed_anywhere_means_the_same_to_both_readers_or_is_refused_by_both(tree: Any, chance: Any) -> None:
    metadata = dump(tree)
    for _ in range(10):
        damaged = bytearray(metadata)
        for _ in range(chance.randint(1, 3)):
            here = chance.randrange(len(damaged) + 1)
            match chance.randrange(4):
                case 0 if here < len(damaged):
                    damaged[here] = chance.randrange(256)
                case 1:
                    del damaged[here : here + chance.randint(1, 12)]
                case 2:
                    damaged[here:here] = damaged[here : here + chance.randint(1, 40)]
                case _:
                    damaged[here:here] = chance.choice([b"N", leaf(), text("a"), b"K\x01", integer(2**70), b"(t", b"e"])
        is_sound(bytes(damaged))


@native_only
def test_the_native_writer_and_reader_have_the_limits_of_the_python_ones() -> None:
    describe = core.TreeEncoder(carried).describe

    def nested(depth: int) -> object:
        tree: object = None
        for _ in range(depth):
            tree = [tree]
        return tree

    for tree in (nested(32), [None] * 4095, {"a" * 1024: None}, {2**63 - 1: None, -(2**63): None}, np.zeros([1] * 16)):
        metadata = describe(tree)
        assert metadata == dump(structure(tree))
        assert is_sound(metadata)
    for tree in (nested(33), [None] * 4096, {"a" * 1025: None}, {2**63: None}, {"\ud800": None}, 2**127):
        assert describe(tree) is None
    wide = {f"{index:01000}": None for index in range(66)}
    assert describe(wide) is None
    del wide[f"{0:01000}"]
    assert describe(wide) == dump(wide)


def test_a_changed_tree_of_the_sort_that_is_compared_is_told_apart() -> None:
    """The comparisons above can fail: a writer that took one of these for another would be found."""
    forms = [
        [1],
        [1.0],
        [True],
        (1,),
        ["1"],
        [b"1"],
        [1, 2.0],
        {1: 1},
        {"1": 1},
        1,
        1.0,
        True,
        np.int64(1),
        np.array(1),
    ]

    assert len({flatten(tree, "tree").metadata for tree in forms}) == len(forms)
    assert len({dump(structure(tree)) for tree in forms}) == len(forms)


def test_every_dtype_of_numpy_in_the_table_has_the_size_that_numpy_gives_it() -> None:
    sizes = {name: np.dtype(name).itemsize for name in DTYPES if name != "<bf2"}

    assert sizes == {name: size for name, size in DTYPES.items() if name != "<bf2"}
    assert {np.dtype(name).str for name in sizes} == set(sizes)
    assert DTYPES["<bf2"] == 2


def test_the_example_of_these_tests_has_every_operation_of_the_grammar() -> None:
    for operation in (b"N", b"\x8a", b"\x8c", b"X", b"K", b"M", b"J", b"\x87Q", b"}(", b"u", b"](", b"e", b"t"):
        assert operation in VALID
    assert is_sound(VALID)
