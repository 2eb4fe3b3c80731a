"""Schema of one structure: the layout of its leaves in the payload, and how to unflatten them into a tree.

A robot sends the same structure thousands of times. Its schema is inferred once; afterwards a `StructureGuard`
(structure_guard.py) on the sending side checks and flattens a tree, and the `Schema` on the receiving side unflattens it.

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

#: numpy has no bfloat16 dtype; its bytes travel as uint16.
BFLOAT16 = "<bf2"
_STORED_AS = {name: np.dtype(np.uint16) if name == BFLOAT16 else np.dtype(name) for name in DTYPES}
_NUMBER_FORMAT = {"int": "q", "float": "d", "bool": "q"}


@dataclass(frozen=True)
class LeafLayout:
    """Layout of one array-like leaf in the payload."""

    kind: str  # "array", "scalar", "list", "bytes" or "str"
    dtype: str  # the wire name
    stored_as: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size: int  # bytes

    def view(self, payload: npt.NDArray[np.uint8]) -> Array:
        """Return the leaf's bytes in `payload` as an array of its dtype and shape.

        Its base, if it has any bytes, is an array of the leaf alone, made of the memory and not of another array: numpy
        makes it the base of every array derived from the view, so its reference count shows whether the leaf is still held.
        """
        if not self.size:
            return np.empty(self.shape, self.stored_as)
        root = np.frombuffer(payload.data, np.uint8, self.size, self.offset)
        return root.view(self.stored_as).reshape(self.shape)


class Schema:
    """Metadata bytes and leaf layout of one structure, which both sides know."""

    def __init__(self, tree: Any, metadata: bytes) -> None:
        """Lay out `tree`, which holds a `Leaf` wherever a value lies in the payload."""
        self.metadata = metadata
        self.arrays: list[LeafLayout] = []
        #: Whether the tree is one value without a container.
        self.is_leaf_root = not isinstance(tree, (dict, list, tuple))
        layout = _TreeLayout()
        layout.container((tree,) if self.is_leaf_root else tree)
        self.numbers = struct.Struct("@" + "".join(layout.formats))
        #: Makes the tree with these numbers and arrays for its leaves, each in the order of the layout.
        self.unflatten = _unflattener(
            layout.containers(), layout.constants, layout.bools, is_leaf_root=self.is_leaf_root
        )
        self._layout = layout
        self._end = self.numbers.size
        for leaf in layout.leaves:
            self._place(leaf)
        #: Bytes of payload that a tree of this structure takes.
        self.payload_bytes = self._end
        #: Whether every leaf is a number, or an array of a dtype that numpy has.
        self.is_all_arrays = all(place.kind == "array" and place.dtype != BFLOAT16 for place in self.arrays)
        if self.payload_bytes > MAX_PAYLOAD_BYTES:
            raise MetadataError(f"a payload of {self.payload_bytes} bytes: {MAX_PAYLOAD_BYTES} at most")

    @classmethod
    def from_metadata(cls, metadata: bytes) -> Schema:
        """Return the schema that a peer describes; raises MetadataError for bytes that describe none."""
        tree, _ = load(metadata)
        return cls(tree, metadata)

    @cached_property
    def decoder(self) -> core.TreeDecoder | None:
        """The native counterpart of `unflatten`, which also makes the arrays; None in pure Python."""
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


#: Indices of a container's entries in `[numbers..., arrays..., constants..., containers...]`, its keys, its type.
_ContainerSpec = tuple[tuple[int, ...], tuple[str, ...] | None, type]
_Gather = Callable[[Sequence[Any]], Sequence[Any]]
_Unflatten = Callable[[Sequence[Any], Sequence[Any]], Any]


def _unflattener(
    containers: list[_ContainerSpec], constants: list[Any], bools: list[int], *, is_leaf_root: bool
) -> _Unflatten:
    """Return the function that makes the tree. Inner containers come before outer ones; the outermost is the last."""
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
    """Leaves and constants of a tree in the order of their layout, and which of them each container holds."""

    def __init__(self) -> None:
        self.formats: list[str] = []  # of the numbers
        self.bools: list[int] = []  # numbers that are bools, which travel as integers
        self.leaves: list[Leaf] = []  # all others in the payload
        self.constants: list[Any] = []
        self._containers: list[tuple[list[tuple[list[Any], int]], tuple[str, ...] | None, type]] = []

    def container(self, container: dict[str, Any] | list[Any] | tuple[Any, ...]) -> int:
        """Note its entries, leaves first; returns its index among the containers."""
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
        """Return for each container the indices of its entries in `[numbers..., leaves..., constants..., containers...]`."""
        start, ends = 0, {}
        for values in (self.formats, self.leaves, self.constants, self._containers):
            ends[id(values)] = start
            start += len(values)
        return [
            (tuple(ends[id(values)] + place for values, place in entries), keys, kind)
            for entries, keys, kind in self._containers
        ]


def _gather(places: Sequence[int]) -> _Gather:
    """Return a function that takes the values at these indices, in this order."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: [values[place] for place in places]
