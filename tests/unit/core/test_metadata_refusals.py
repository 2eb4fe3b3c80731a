"""Trees that have no safe form, or exceed the limits of metadata: the writer refuses each."""

import collections
import enum
import pickletools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shmserve.metadata import (
    DEPTH_LIMIT,
    DIMENSION_LIMIT,
    KEY_LIMIT,
    LEAF_BYTES_LIMIT,
    METADATA_LIMIT,
    OPERATION_LIMIT,
    Leaf,
    MetadataError,
    dump,
    load,
)
from tests.support.metadata_trees import fast_pickle, nested

# What has no safe form.


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
        ({1, 2}, "set"),
        (bytearray(2), "bytearray"),
        (1j, "complex"),
        (print, "builtin_function_or_method"),
        (object(), "object"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (Text("x"), "Text"),
        (Colour.RED, "Colour"),
        (np.float64(1.0), "numpy.float64"),  # a subclass of float
        (np.zeros(2), "numpy.ndarray"),
        (OfHashlessType(), "OfHashlessType"),
    ],
)
def test_another_type_is_refused_with_its_name_and_its_place(value: object, name: str) -> None:
    with pytest.raises(MetadataError, match=rf"tree\['arm'\]\[1\]: .*{name} has no safe form"):
        dump({"arm": [0, value]})


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), Text("a"), np.str_("a"), Leaf("int", "<i8", ())])
def test_a_key_that_is_not_exactly_a_str_is_refused(key: object) -> None:
    with pytest.raises(MetadataError, match=r"no metadata for tree\['arm'\]: a key is a str"):
        dump({"arm": {key: 1}})


def test_a_key_may_have_the_limit_of_characters_and_no_more() -> None:
    assert load(dump({"é" * KEY_LIMIT: 1})) == ({"é" * KEY_LIMIT: 1}, [])
    with pytest.raises(MetadataError, match="1025 characters, the limit is 1024"):
        dump({"é" * (KEY_LIMIT + 1): 1})


@pytest.mark.parametrize("value", [2**127, -(2**127) - 1, 10**5000], ids=["high", "low", "beyond printing"])
def test_an_int_of_more_than_16_bytes_is_refused(value: int) -> None:
    with pytest.raises(MetadataError, match=r"tree\[0\]: an int of \d+ bits takes more than 16 bytes"):
        dump([value])


@pytest.mark.parametrize("tree", ["a\ud800", {"a\ud800": 1}])
def test_a_lone_surrogate_is_refused(tree: object) -> None:
    with pytest.raises(MetadataError, match="surrogate"):
        dump(tree)


BAD_LEAVES = [
    Leaf("tensor", "<f4", ()),
    Leaf(None, "<f4", ()),  # type: ignore[arg-type]
    Leaf(["array"], "<f4", ()),  # type: ignore[arg-type]
    Leaf("array", "|O", ()),
    Leaf("array", ">f4", ()),
    Leaf("array", ["<f4"], ()),  # type: ignore[arg-type]
    Leaf("array", Text("<f4"), ()),
    Leaf("array", "<f4", [2]),  # type: ignore[arg-type]
    Leaf("array", "<f4", (-1,)),
    Leaf("array", "<f4", (True,)),
    Leaf("array", "<f4", (1.0,)),  # type: ignore[arg-type]
    Leaf("array", "<f4", (np.int64(2),)),
    Leaf("array", "<f4", (10**5000,)),
    Leaf("array", "<f4", (0, 10**5000)),
    Leaf("array", "|u1", (LEAF_BYTES_LIMIT,)),
    Leaf("array", "<f8", (2**15, 2**15, 2**15)),
    Leaf("array", "<f4", (1,) * (DIMENSION_LIMIT + 1)),
    Leaf("scalar", "<f4", (1,)),
    Leaf("int", "<i4", ()),
    Leaf("int", "<i8", (1,)),
    Leaf("float", "<i8", ()),
    Leaf("bool", "|b1", ()),
    Leaf("bytes", "|i1", (2,)),
    Leaf("str", "|u1", ()),
    Leaf("str", "|u1", (2, 2)),
]


@pytest.mark.parametrize("leaf", BAD_LEAVES, ids=range(len(BAD_LEAVES)))
def test_a_leaf_that_a_reader_would_refuse_is_not_written(leaf: Leaf) -> None:
    with pytest.raises(MetadataError, match=r"no metadata for tree\['arm'\]: (a leaf|the dtype of a leaf)"):
        dump({"arm": leaf})


@pytest.mark.parametrize(
    "leaf",
    [
        Leaf("array", "|u1", (LEAF_BYTES_LIMIT - 1,)),
        Leaf("array", "<c16", (2**22, 2**21, 1, 0)),
        Leaf("array", "<f4", (1,) * DIMENSION_LIMIT),
        Leaf("array", "<f4", (0, 0)),
        Leaf("str", "|u1", (0,)),
    ],
    ids=repr,
)
def test_a_leaf_at_the_limits_comes_back(leaf: Leaf) -> None:
    assert load(dump([leaf])) == ([leaf], [leaf])


# The limits: `dump` refuses what `load` would, and nothing that it would take.


def test_values_may_lie_within_as_many_containers_as_the_limit_and_no_more() -> None:
    assert load(dump(nested(DEPTH_LIMIT))) == (nested(DEPTH_LIMIT), [])
    with pytest.raises(MetadataError, match="within more than 32 containers"):
        dump(nested(DEPTH_LIMIT + 1))
    with pytest.raises(MetadataError, match="within more than 32 containers"):
        load(fast_pickle(nested(DEPTH_LIMIT + 1)))


SHAPES_OF_TREE: dict[str, Callable[[int], object]] = {
    "a list of None": lambda count: [None] * count,
    "a tuple of small tuples": lambda count: ((1, 2),) * (count // 3) + (1,) * (count % 3),
    "a tuple of wide tuples": lambda count: ((1, 2, 3, 4),) * (count // 6) + (1,) * (count % 6),
    "lists of one": lambda count: [[1]] * (count // 3) + [1] * (count % 3),
    "dicts of one": lambda count: [{"a": 1}] * (count // 4) + [1] * (count % 4),
    "a dict": lambda count: {str(index): 1 for index in range(count // 2)},
    "empty containers": lambda count: [[], {}, ()] * (count // 3) + [1] * (count % 3),
}


@pytest.mark.parametrize("shape", SHAPES_OF_TREE)
def test_a_tree_is_dumped_exactly_if_its_operations_are_within_the_limit(shape: str) -> None:
    taken = []
    for count in range(OPERATION_LIMIT - 24, OPERATION_LIMIT + 1):
        tree = SHAPES_OF_TREE[shape](count)
        operations = sum(1 for _ in pickletools.genops(fast_pickle(tree)))
        if operations <= OPERATION_LIMIT:
            taken.append(operations)
            assert load(dump(tree)) == (tree, [])
        else:
            with pytest.raises(MetadataError, match="more than 4096 operations"):
                dump(tree)
            with pytest.raises(MetadataError, match="the last of 4096 operations"):
                load(fast_pickle(tree))

    assert max(taken) >= OPERATION_LIMIT - 1  # a dict grows by two


@pytest.mark.parametrize("dimensions", [0, 1, 3, 4, DIMENSION_LIMIT])
def test_leaves_are_dumped_exactly_if_their_operations_are_within_the_limit(dimensions: int) -> None:
    leaf = Leaf("array", "<f4", (1,) * dimensions)
    each = 7 + dimensions + (dimensions > 3)
    most = (OPERATION_LIMIT - 6) // each  # PROTO FRAME EMPTY_LIST MARK ... APPENDS STOP
    metadata = dump([leaf] * most)

    assert sum(1 for _ in pickletools.genops(metadata)) == 6 + most * each
    assert len(load(metadata)[1]) == most
    with pytest.raises(MetadataError, match="more than 4096 operations"):
        dump([leaf] * (most + 1))


@pytest.mark.parametrize(("unit", "size"), [("a", 1), ("é", 2), ("字", 3), ("🤖", 4), (b"a", 1)])
def test_a_text_is_dumped_exactly_if_the_metadata_is_within_the_limit(unit: Any, size: int) -> None:
    most = (METADATA_LIMIT - 2 - 9 - 5 - 1) // size  # PROTO FRAME BINUNICODE or BINBYTES ... STOP

    assert len(dump(unit * most)) > METADATA_LIMIT - 4
    assert load(dump(unit * most)) == (unit * most, [])
    with pytest.raises(MetadataError, match=r"the limit is 65536; long strings"):
        dump(unit * (most + 1))
    with pytest.raises(MetadataError, match="the limit is 65536"):
        load(fast_pickle(unit * (most + 1)))


def test_numbers_in_all_their_width_can_exceed_the_bytes_too() -> None:
    with pytest.raises(MetadataError, match=r"no metadata for tree: takes \d+ bytes, the limit is 65536"):
        dump([2**127 - 1] * 4000)


def laughs(depth: int) -> object:
    tree: object = "ha"
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
    [within_itself([]), within_itself([1, 2, 3]), a_cycle_of_two(), (within_itself([]),), nested(10**5), laughs(20)],
    ids=["list", "longer list", "dicts", "tuple", "deep", "laughs"],
)
def test_a_tree_without_end_is_refused(tree: object) -> None:
    with pytest.raises(MetadataError, match=r"32 containers|4096 operations"):
        dump(tree)


@pytest.mark.parametrize(
    "tree",
    ["a" * 10**7, "é" * 10**7, b"a" * 10**7, [0] * 10**6, ["a" * 60000] * 4000],
    ids=["ASCII", "other text", "bytes", "values", "repeated text"],
)
def test_a_tree_far_too_large_is_refused_before_it_is_copied_or_pickled(tree: object) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MetadataError, match=r"65536|4096"):
            dump(tree)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2**20
