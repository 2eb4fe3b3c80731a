"""Trees that have no safe form, or exceed the limits of metadata: the writer refuses each and names its place."""

from __future__ import annotations

import collections
import enum
import tracemalloc
from typing import Any

import numpy as np
import pytest

from shmserve.metadata import (
    DEPTH_LIMIT,
    DIMENSION_LIMIT,
    KEY_LIMIT,
    METADATA_LIMIT,
    NODE_LIMIT,
    Leaf,
    MetadataError,
    dump,
    load,
)
from tests.support.metadata_bytes import is_sound

# Values without a safe form.


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    pass


class HashlessType(type):
    __hash__ = None  # type: ignore[assignment]


class OfHashlessType(metaclass=HashlessType):
    pass


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1, "int"),  # 64 bits lie in the payload, as do the next four
        (True, "bool"),
        (0.5, "float"),
        ("text", "str"),
        (b"bytes", "bytes"),
        ({1, 2}, "set"),
        (bytearray(2), "bytearray"),
        (1j, "complex"),
        (print, "builtin_function_or_method"),
        (object(), "object"),
        (collections.OrderedDict(a=None), "collections.OrderedDict"),
        (Text("x"), "Text"),
        (Colour.RED, "Colour"),
        (np.float64(1.0), "numpy.float64"),
        (np.zeros(2), "numpy.ndarray"),
        (OfHashlessType(), "OfHashlessType"),
    ],
    ids=lambda each: each if type(each) is str else type(each).__name__,
)
def test_another_type_is_refused_with_its_name_and_its_place(value: object, name: str) -> None:
    with pytest.raises(MetadataError, match=rf"tree\['arm'\]\[1\]: .*{name} has no safe form"):
        dump({"arm": [None, value]})


@pytest.mark.parametrize(
    "key", [None, b"a", 1.0, True, ("a",), Text("a"), np.str_("a"), np.int64(1), Colour.RED, Leaf("int", "<i8", 0)]
)
def test_a_key_that_is_not_exactly_a_str_or_an_int_is_refused(key: object) -> None:
    with pytest.raises(MetadataError, match=r"no metadata for tree\['arm'\]: a key is a str or an int"):
        dump({"arm": {key: None}})


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("a" * (KEY_LIMIT + 1), "1025 bytes, the limit is 1024"),
        ("é" * 513, "1026 bytes, the limit is 1024"),
        (2**63, "more than 64 bits"),
        (-(2**63) - 1, "more than 64 bits"),
        (10**5000, "more than 64 bits"),
        ("a\ud800", "surrogate"),
    ],
    ids=["long", "long as UTF-8", "high", "low", "beyond printing", "surrogate"],
)
def test_a_key_without_room_is_refused(key: object, fault: str) -> None:
    with pytest.raises(MetadataError, match=rf"no metadata for tree\['arm'\]: .*{fault}"):
        dump({"arm": {key: None}})


@pytest.mark.parametrize("value", [2**127, -(2**127) - 1, 10**5000], ids=["high", "low", "beyond printing"])
def test_an_int_of_more_than_16_bytes_is_refused(value: int) -> None:
    with pytest.raises(MetadataError, match=r"tree\[0\]: an int of \d+ bits takes more than 16 bytes"):
        dump([value])


BAD_LEAVES: list[Any] = [
    Leaf("tensor", "<f4", 0),
    Leaf(None, "<f4", 0),  # type: ignore[arg-type]
    Leaf(["array"], "<f4", 0),  # type: ignore[arg-type]
    Leaf("array", "|O", 0),
    Leaf("array", ">f4", 0),
    Leaf("array", ["<f4"], 0),  # type: ignore[arg-type]
    Leaf("array", Text("<f4"), 0),
    Leaf("array", "<f4", (2, 3)),  # type: ignore[arg-type]
    Leaf("array", "<f4", None),  # type: ignore[arg-type]
    Leaf("array", "<f4", -1),
    Leaf("array", "<f4", True),
    Leaf("array", "<f4", 1.0),  # type: ignore[arg-type]
    Leaf("array", "<f4", np.int64(2)),
    Leaf("array", "<f4", 10**5000),
    Leaf("array", "<f4", DIMENSION_LIMIT + 1),
    Leaf("scalar", "<f4", 1),
    Leaf("int", "<i4", 0),
    Leaf("int", "<i8", 1),
    Leaf("float", "<i8", 0),
    Leaf("bool", "|b1", 0),
    Leaf("bytes", "|i1", 1),
    Leaf("str", "|u1", 0),
    Leaf("str", "|u1", 2),
    Leaf("list", "<f4", 1),
    Leaf("list", "<f8", 0),
]


@pytest.mark.parametrize("leaf", BAD_LEAVES, ids=range(len(BAD_LEAVES)))
def test_a_leaf_that_a_reader_would_refuse_is_not_written(leaf: Leaf) -> None:
    with pytest.raises(MetadataError, match=r"no metadata for tree\['arm'\]: (a leaf|the dtype of a leaf)"):
        dump({"arm": leaf})


# The limits: `dump` refuses what `load` would, and nothing that it would accept.


def nested(depth: int, innermost: object = None) -> object:
    for _ in range(depth):
        innermost = [innermost]
    return innermost


def test_values_may_lie_within_as_many_containers_as_the_limit_and_no_more() -> None:
    assert is_sound(dump(nested(DEPTH_LIMIT)))
    with pytest.raises(MetadataError, match="within more than 32 containers"):
        dump(nested(DEPTH_LIMIT + 1))


@pytest.mark.parametrize(
    "unit", [[None], [[]], [[None]], [{"a": None}, None], [((), ())], [Leaf("int", "<i8", 0)]], ids=repr
)
def test_a_tree_is_dumped_exactly_if_its_values_are_within_the_limit(unit: list[object]) -> None:
    def count(tree: Any) -> int:
        if type(tree) not in (list, tuple, dict):
            return 1
        return 1 + sum(map(count, tree.values() if type(tree) is dict else tree))

    tree = unit * ((NODE_LIMIT - 1) // (count(unit) - 1))

    assert is_sound(dump(tree))
    with pytest.raises(MetadataError, match="more than 4096 values; long lists of numbers belong in one array"):
        dump([*tree, *unit])


def test_a_tree_is_dumped_exactly_if_its_metadata_is_within_the_limit_of_bytes() -> None:
    keys = {f"{index:01000}": None for index in range(65)}
    rest = METADATA_LIMIT - len(dump(keys)) - 3  # its operation, its length and NONE

    assert len(dump({**keys, "a" * rest: None})) == METADATA_LIMIT
    assert load(dump({**keys, "a" * rest: None}))
    with pytest.raises(MetadataError, match="no metadata for tree: it takes 65537 bytes, the limit is 65536"):
        dump({**keys, "a" * (rest + 1): None})


def laughs(depth: int) -> object:
    tree: object = None
    for _ in range(depth):
        tree = [tree] * 10
    return tree


def within_itself(container: Any) -> Any:
    container.append(container)
    return container


def a_cycle_of_two() -> object:
    one: dict[str, object] = {}
    one["other"] = {"first": [one]}
    return one


@pytest.mark.parametrize(
    "tree",
    [within_itself([]), within_itself([None] * 3), a_cycle_of_two(), (within_itself([]),), nested(10**5), laughs(20)],
    ids=["list", "longer list", "dicts", "tuple", "deep", "laughs"],
)
def test_a_tree_without_end_is_refused(tree: object) -> None:
    with pytest.raises(MetadataError, match=r"32 containers|4096 values"):
        dump(tree)


@pytest.mark.parametrize("tree", [[None] * 10**6, {index: None for index in range(10**5)}], ids=["list", "dict"])
def test_a_tree_far_too_large_is_refused_before_all_of_it_is_written(tree: object) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MetadataError, match="4096"):
            dump(tree)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2**20
