"""Values of subclasses are carried as their bases, or refused by place where that would lose something; no daemon."""

from __future__ import annotations

import enum
import functools
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.base_values import plain_tree
from shmserve.codec import Decoder, Encoder, SlotMemory
from shmserve.errors import RequestRejected, UnsupportedType
from tests.support.same_trees import assert_same
from tests.support.trees import Colour, Entries, Items, Mode, Pixels, Task, Text, Whole


def slot(size: int = 1 << 16) -> SlotMemory:
    return SlotMemory(np.zeros(1 << 16, np.uint8), np.zeros(size, np.uint8))


def with_attribute(given: Any, name: str = "unit", value: str | None = "mm") -> Any:
    setattr(given, name, value)
    return given


class Attributes(dict[str, Any]):
    """Its entries are its attributes, as in many programs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class Mirrored(dict[str, Any]):
    """Its entries are attributes besides, and it computes one that it keeps."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        setattr(self, key, value)

    @functools.cached_property
    def count(self) -> int:
        return len(self)


class Flags(enum.IntFlag):
    A = 1
    B = 2


class Slotted(Pixels):
    __slots__ = ("unit",)


class Unreadable(dict[str, Any]):
    def __iter__(self) -> Any:
        raise KeyError("entries")

    def keys(self) -> Any:
        raise KeyError("entries")


class Named(str, enum.Enum):
    """A member of an enumeration has attributes of its own, and its value is all of it."""

    FOLD = "fold"

    @property
    def label(self) -> str:
        return "Fold the towel"


LOST: dict[str, tuple[Any, str]] = {
    "masked array": (np.ma.masked_less([1.0, 2.0], 1.5), r"numpy\.ma\.MaskedArray cannot be carried: its mask would"),
    "masked texts": (np.ma.array(["a", "b"], mask=[True, False]), r"MaskedArray cannot be carried: its mask would"),
    "array with a unit": (
        with_attribute(np.ones(3).view(Pixels)),
        r"Pixels cannot be carried: its attributes .*\(unit\)",
    ),
    "array with a slot": (with_attribute(np.ones(3).view(Slotted)), r"Slotted cannot be carried: .*\(unit\)"),
    "tensor with a unit": (
        with_attribute(torch.ones(3).as_subclass(type("T", (torch.Tensor,), {}))),
        r"T cannot .*\(unit",
    ),
    "dict with an attribute": (with_attribute(Entries(x=1)), r"Entries cannot be carried: .*\(unit\)"),
    "OrderedDict with an attribute": (with_attribute(OrderedDict(x=1)), r"OrderedDict cannot be carried: .*\(unit\)"),
    "list with an attribute": (with_attribute(Items([1])), r"Items cannot be carried: .*\(unit\)"),
    "text with an attribute": (with_attribute(Text("a")), r"Text cannot be carried: .*\(unit\)"),
    "number with an attribute": (with_attribute(Whole(1)), r"Whole cannot be carried: .*\(unit\)"),
    "time": (time.localtime(0), r"time\.struct_time cannot be carried: it has fields that a tuple does not have"),
    "dict that cannot be read": (Unreadable(x=1), r"Unreadable cannot be carried: its entries cannot be read"),
    "tensor without values": (torch.ones(2, device="meta"), r": a tensor of the meta device has no values"),
}


@pytest.mark.parametrize("trusted", [False, True], ids=["stranger", "trusted"])
@pytest.mark.parametrize("name", LOST)
def test_a_lossy_value_is_refused_by_place_for_every_client(name: str, trusted: bool) -> None:
    value, text = LOST[name]

    with pytest.raises(UnsupportedType, match=rf"^observation\['a'\]\[1\].*{text}"):
        Encoder(allow_pickle=trusted and name != "tensor without values").encode({"a": [0, value]}, slot())


KEPT: dict[str, tuple[Any, Any]] = {
    "entries as attributes": (Attributes(x=1), {"x": 1}),
    "an attribute that says nothing": (with_attribute(Entries(x=1), "__orig_class__"), {"x": 1}),
    "an attribute of None": (with_attribute(Entries(x=1), value=None), {"x": 1}),
    "an enum with a property": (Named.FOLD, "fold"),
    "a flag": (Flags.A | Flags.B, 3),
    "matrix": (np.ones((2, 3), np.float32).view(np.matrix), np.ones((2, 3), np.float32)),
    "named result": (torch.max(torch.tensor([[1.0, 2.0]]), 1), (np.array([2.0], np.float32), np.array([1]))),
    "text array": (np.array([["a", "bc"], ["", "d"]]), [["a", "bc"], ["", "d"]]),
    "texts of any length": (
        np.array(["a", "bc" * 200], getattr(np.dtypes, "StringDType", lambda: "U400")()),
        ["a", "bc" * 200],
    ),
    "text without dimensions": (np.array("fold"), "fold"),
    "raw texts": (np.array([b"a", b"bc"]), [b"a", b"bc"]),
}


@pytest.mark.parametrize("trusted", [False, True], ids=["stranger", "trusted"])
@pytest.mark.parametrize("name", KEPT)
def test_a_subclass_without_further_state_is_sent_as_its_base(name: str, trusted: bool) -> None:
    value, wanted = KEPT[name]
    memory = slot()

    encoded = Encoder(allow_pickle=trusted).encode({"a": value}, memory)

    assert not encoded.pickled
    assert_same(Decoder().decode(memory, *encoded), {"a": wanted})


def test_an_attribute_that_an_entry_repeats_is_not_lost() -> None:
    mirrored = Mirrored()
    mirrored["x"] = 5
    assert mirrored.count == 1

    assert type(plain_tree(mirrored, "observation")) is dict


def test_a_memmap_is_an_array_like_any_other(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    frames = np.load(tmp_path / "frames.npy", mmap_mode="r")
    encoder, decoder, memory = Encoder(), Decoder(), slot()

    for frame in frames:
        encoded = encoder.encode({"frame": frame}, memory)

        assert_same(decoder.decode(memory, *encoded), {"frame": np.asarray(frame)})
    assert encoded.schema == 1  # the second frame was known by the first


def test_a_later_value_of_a_known_structure_is_carried_by_its_own_value() -> None:
    encoder, decoder, memory = Encoder(), Decoder(), slot()
    seen = []
    for mode, task, names, colour in (
        (Mode.HOLD, np.str_("fold"), np.array(["a", "b"]), Colour.RED),
        (Mode.MOVE, np.str_("fold"), np.array(["a", "b"]), Colour.RED),
        (Mode.MOVE, np.str_("wash"), np.array(["a", "c"]), Colour.NAMED),
        (Mode.MOVE, Task.FOLD, np.array(["a"]), Colour.MIXED),
    ):
        tree = OrderedDict(mode=mode, task=task, names=names, colour=colour)

        encoded = encoder.encode(tree, memory)

        seen.append(encoded.schema)
        assert_same(decoder.decode(memory, *encoded), tree)
    assert seen == [1, 1, 2, 3]


def test_an_attribute_that_comes_later_is_noticed() -> None:
    encoder, memory = Encoder(), slot()
    pixels = np.ones(3).view(Pixels)
    encoder.encode({"a": pixels, "b": Entries(x=1)}, memory)

    for tree in (
        {"a": with_attribute(pixels), "b": Entries(x=1)},
        {"a": np.ones(3).view(Pixels), "b": with_attribute(Entries(x=1))},
    ):
        with pytest.raises(UnsupportedType, match=r"^observation\['[ab]'\]: .*its attributes would be lost \(unit\)"):
            encoder.encode(tree, memory)


def test_keys_of_subclasses_are_their_texts() -> None:
    memory = slot()
    encoder = Encoder()
    for number in range(2):
        tree = {np.str_("x"): number, Task.FOLD: {np.str_("y"): np.ones(2)}}

        found = Decoder().decode(memory, *encoder.encode(tree, memory))

        assert found["x"] == number and list(found) == ["x", "fold"]
        assert {type(key) for key in (*found, *found["fold"])} == {str}


class Refuses:
    """Whose own code raises wherever it is asked."""

    def __reduce__(self) -> Any:
        raise LookupError("no state today")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise LookupError("no array today")


class OfMain:
    """As a class of the program that is started."""


OfMain.__module__ = "__main__"


class KeyOfNothing:
    """A key that cannot be pickled, nor shown."""

    def __repr__(self) -> str:
        raise LookupError("no text")

    def __reduce__(self) -> Any:
        raise LookupError("no state today")


def _circle(kind: type) -> Any:
    circle: Any = kind()
    if isinstance(circle, dict):
        circle["a"] = [circle]
    else:
        circle.append({"a": circle})
    return circle


def _deep(depth: int) -> Any:
    tree: Any = 1
    for _ in range(depth):
        tree = [tree]
    return tree


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "lambda": (lambda: lambda x: x, r"observation\['f'\]\[1\]: an object of type builtins\.function cannot be carried"),
    "generator": (
        lambda: (number for number in range(3)),
        r"observation\['f'\]\[1\]: an object of type builtins\.generator cannot",
    ),
    "open file": (lambda: sys.stderr.buffer, r"observation\['f'\]\[1\]: an object of type _io\.\w+ cannot be carried"),
    "lock": (threading.Lock, r"observation\['f'\]\[1\]: an object of type _thread\.lock cannot be carried"),
    "module": (lambda: sys, r"observation\['f'\]\[1\]: an object of type builtins\.module cannot be carried"),
    "lock in a set": (lambda: {threading.Lock()}, r"observation\['f'\]\[1\]: an object of type builtins\.set cannot"),
    "own code raises": (
        Refuses,
        r"observation\['f'\]\[1\]: an object of type .*Refuses cannot be carried: .*no state today",
    ),
    "class of __main__": (
        OfMain,
        r"observation\['f'\]\[1\]: an object of type __main__\.OfMain .* class OfMain .* __main__ .*, or send a dict",
    ),
    "in a list of __main__": (
        lambda: {1: [OfMain]},
        r"observation\['f'\]\[1\]\[1\]\[0\]: .* class OfMain is defined in __main__",
    ),
    "key": (
        lambda: {KeyOfNothing(): 1},
        r"observation\['f'\]\[1\]: an object of type .*KeyOfNothing cannot be carried",
    ),
    "dict in itself": (lambda: _circle(dict), r"observation\['f'\]\[1\]\['a'\]\[0\]: the dict contains itself"),
    "list in itself": (lambda: _circle(list), r"observation\['f'\]\[1\]\[0\]\['a'\]: the list contains itself"),
    "OrderedDict in itself": (
        lambda: _circle(OrderedDict),
        r"observation\['f'\]\[1\]\['a'\]\[0\]: the OrderedDict contains",
    ),
    "Items in themselves": (lambda: _circle(Items), r"observation\['f'\]\[1\]\[0\]\['a'\]: the Items contains itself"),
    "deep": (lambda: _deep(5000), r"observation\['f'\]\[1\](\[0\])+.*: a list within more than 200 containers"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_value_that_cannot_be_pickled_is_named_by_place_and_type(name: str) -> None:
    make, text = UNFIT[name]
    encoder, memory = Encoder(allow_pickle=True), slot()

    with pytest.raises(UnsupportedType, match=text):
        encoder.encode({"f": [1, make()]}, memory)

    assert_same(Decoder().decode(memory, *encoder.encode({"x": 1}, memory)), {"x": 1})


@pytest.mark.parametrize(
    "name", sorted(UNFIT.keys() - {"class of __main__", "in a list of __main__", "own code raises", "key", "deep"})
)
def test_a_stranger_is_told_the_same_place(name: str) -> None:
    make, text = UNFIT[name]

    with pytest.raises(UnsupportedType, match=text):
        Encoder().encode({"f": [1, make()]}, slot())


def test_a_bare_value_is_called_what_the_tree_is() -> None:
    for trusted in (False, True):
        with pytest.raises(UnsupportedType, match=r"^action: an object of type builtins\.function cannot be carried"):
            Encoder(allow_pickle=trusted, name="action").encode(lambda: None, slot())


def test_a_tree_that_meets_itself_a_million_times_is_refused_at_once() -> None:
    tree: Any = []
    for _ in range(30):
        tree = [tree, tree]

    with pytest.raises(RequestRejected, match="more than 4096 entries"):
        Encoder().encode(tree, slot())
    with pytest.raises(UnsupportedType, match=r"^observation\['f'\]: an object of type builtins.function"):
        Encoder(allow_pickle=True).encode({"t": tree, "f": lambda: None}, slot())


def test_an_object_beside_subclasses_does_not_change_what_they_are() -> None:
    memory = slot()
    tree = {
        "o": {1, 2},
        "d": OrderedDict(x=np.ones(2).view(Pixels)),
        "t": np.str_("a"),
        "n": np.array(["a"]),
        "m": Mode.HOLD,
    }

    encoded = Encoder(allow_pickle=True).encode(tree, memory)
    found = Decoder(allow_pickle=True).decode(memory, *encoded)

    assert encoded.pickled and found["o"] == {1, 2}
    assert {key: type(value) for key, value in found.items()} == {"o": set, "d": dict, "t": str, "n": list, "m": int}
    assert type(found["d"]["x"]) is np.ndarray
