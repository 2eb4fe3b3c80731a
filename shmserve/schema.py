"""The structure of one tree as its receiver knows it: where its leaves lie, and how it is put together again.

A robot sends the same structure thousands of times. It is described and compiled once; afterwards a
`StructureGuard` (structure_guard.py) on the sending side compares a tree with it and collects what has to be
copied, and the `Schema` on the receiving side puts the values back in place.

Both sides place a tree's leaves by the same walk over the same tree: a container's own leaves first,
then its nested containers in order. Numbers lie together at the start of the payload, 8 bytes each;
every array follows on a 64-byte boundary.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from .backend import NATIVE, core
from .layout import CACHE_LINE, MAX_PAYLOAD_BYTES, aligned
from .metadata import DTYPES, Leaf, MetadataError, load

Array = npt.NDArray[Any]

#: bfloat16 has no numpy dtype of its own; its bytes travel as uint16.
BFLOAT16 = "<bf2"
_STORED_AS = {name: np.dtype(np.uint16) if name == BFLOAT16 else np.dtype(name) for name in DTYPES}
_NUMBER_FORMAT = {"int": "q", "float": "d", "bool": "q"}


@dataclass(frozen=True)
class LeafLayout:
    """Where one array-like leaf lies in the payload."""

    kind: str  # "array", "scalar", "list", "bytes" or "str"
    dtype: str  # the wire name
    stored_as: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size: int  # bytes

    def view(self, payload: npt.NDArray[np.uint8]) -> Array:
        """The leaf's bytes in `payload` as an array of its dtype and shape.

        Its base, if it has any bytes, is an array of the leaf alone, made of the memory and not of another array: numpy
        hangs whatever is made of the view on that, which tells a leaf that somebody has kept from one that nobody holds.
        """
        if not self.size:
            return np.empty(self.shape, self.stored_as)
        root = np.frombuffer(payload.data, np.uint8, self.size, self.offset)
        return root.view(self.stored_as).reshape(self.shape)


class Schema:
    """What both sides know of one structure: its metadata bytes and where its leaves lie."""

    def __init__(self, tree: Any, metadata: bytes) -> None:
        """Compile `tree`, which holds a `Leaf` wherever a value lies in the payload."""
        self.metadata = metadata
        self.arrays: list[LeafLayout] = []
        #: One value that is in no container.
        self.is_leaf_root = not isinstance(tree, (dict, list, tuple))
        layout = _TreeLayout()
        layout.container((tree,) if self.is_leaf_root else tree)
        self.numbers = struct.Struct("@" + "".join(layout.formats))
        #: The tree, with these numbers and arrays for its leaves (each in the order of its places).
        self.unflatten = _unflattener(
            layout.containers(), layout.constants, layout.bools, is_leaf_root=self.is_leaf_root
        )
        self._layout = layout
        self._end = self.numbers.size
        for leaf in layout.leaves:
            self._place(leaf)
        #: Bytes of payload that a tree of this structure takes.
        self.payload_bytes = self._end
        #: Whether every leaf that is no number is an array of a dtype that numpy has.
        self.is_all_arrays = all(place.kind == "array" and place.dtype != BFLOAT16 for place in self.arrays)
        if self.payload_bytes > MAX_PAYLOAD_BYTES:
            raise MetadataError(f"a payload of {self.payload_bytes} bytes: {MAX_PAYLOAD_BYTES} at most")

    @classmethod
    def from_metadata(cls, metadata: bytes) -> Schema:
        """The schema that a peer describes; raises MetadataError for bytes that describe none."""
        tree, _ = load(metadata)
        return cls(tree, metadata)

    @cached_property
    def decoder(self) -> core.TreeDecoder | None:
        """What puts trees together as `unflatten` does, in less time; None where that was not built."""
        if not NATIVE:
            return None
        layout = self._layout
        formats = ["?" if index in layout.bools else one for index, one in enumerate(layout.formats)]
        places = tuple((place.offset, place.size, place.stored_as, place.shape) for place in self.arrays)
        return core.TreeDecoder(
            tuple(layout.containers()),
            "".join(formats),
            places,
            tuple(layout.constants),
            self.is_leaf_root,
            self.payload_bytes,
        )

    def _place(self, leaf: Leaf) -> None:
        stored_as = _STORED_AS[leaf.dtype]
        size = stored_as.itemsize
        for length in leaf.shape:
            size *= length  # Python ints: no overflow to hide behind
        offset = aligned(self._end, CACHE_LINE)
        self.arrays.append(LeafLayout(leaf.kind, leaf.dtype, stored_as, leaf.shape, offset, size))
        self._end = offset + size


#: Where the entries of a container are among `[numbers..., arrays..., constants..., containers...]`, its keys, its type.
_ContainerSpec = tuple[tuple[int, ...], tuple[str, ...] | None, type]
_Gather = Callable[[Sequence[Any]], Sequence[Any]]
_Unflatten = Callable[[Sequence[Any], Sequence[Any]], Any]


def _unflattener(
    containers: list[_ContainerSpec], constants: list[Any], bools: list[int], *, is_leaf_root: bool
) -> _Unflatten:
    """Puts a tree together. What is inside a container comes before it in `containers`, and the outermost is the last."""
    gathers = [(_gather(entries), keys, kind) for entries, keys, kind in containers]

    def unflatten(numbers: Sequence[Any], arrays: Sequence[Any]) -> Any:
        values = [*numbers, *arrays, *constants]
        for index in bools:
            values[index] = bool(values[index])
        for gather, keys, kind in gathers:
            entries = gather(values)
            values.append(dict(zip(keys, entries)) if keys is not None else kind(entries))  # noqa: B905
        return values[-1][0] if is_leaf_root else values[-1]

    ((gather, keys, _), *nested) = gathers
    if nested or bools or keys is None:
        return unflatten

    def unflatten_one(numbers: Sequence[Any], arrays: Sequence[Any]) -> Any:
        return dict(zip(keys, gather((*numbers, *arrays, *constants))))  # noqa: B905

    return unflatten_one


class _TreeLayout:
    """A tree's leaves and constants in the order of their places, and which of them each container holds."""

    def __init__(self) -> None:
        self.formats: list[str] = []  # of the numbers
        self.bools: list[int] = []  # numbers that are bools, which travel as integers
        self.leaves: list[Leaf] = []  # all others in the payload
        self.constants: list[Any] = []
        self._containers: list[tuple[list[tuple[list[Any], int]], tuple[str, ...] | None, type]] = []

    def container(self, container: dict[str, Any] | list[Any] | tuple[Any, ...]) -> int:
        """Note what is in it, leaves first; returns its place among the containers."""
        keys = tuple(container) if isinstance(container, dict) else None
        values: Sequence[Any] = tuple(container.values()) if isinstance(container, dict) else container
        # Each entry as (the list that it is in, its place there).
        entries = [self._entry(value) for value in values]
        for position, value in enumerate(values):
            if isinstance(value, (dict, list, tuple)):
                entries[position] = (self._containers, self.container(value))
        self._containers.append((entries, keys, type(container)))
        return len(self._containers) - 1

    def _entry(self, value: Any) -> tuple[list[Any], int]:
        if isinstance(value, Leaf) and value.kind in _NUMBER_FORMAT:
            if value.kind == "bool":
                self.bools.append(len(self.formats))
            self.formats.append(_NUMBER_FORMAT[value.kind])
            return self.formats, len(self.formats) - 1
        if isinstance(value, Leaf):
            self.leaves.append(value)
            return self.leaves, len(self.leaves) - 1
        if not isinstance(value, (dict, list, tuple)):
            self.constants.append(value)
        return self.constants, len(self.constants) - 1

    def containers(self) -> list[_ContainerSpec]:
        """For each container which of `[numbers..., leaves..., constants..., containers...]` are its entries."""
        start, ends = 0, {}
        for values in (self.formats, self.leaves, self.constants, self._containers):
            ends[id(values)] = start
            start += len(values)
        return [
            (tuple(ends[id(values)] + place for values, place in entries), keys, kind)
            for entries, keys, kind in self._containers
        ]


def _gather(places: Sequence[int]) -> _Gather:
    """Takes the values at these places, in this order."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: [values[place] for place in places]
