"""Encoder of trees in Python: one walk describes a tree and flattens it, then its leaves are copied into a slot.

native/python/tree_encoder.c does the same.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shmserve.carried_values import Convert
from shmserve.errors import DeviceArrayRefused, RequestRejected
from shmserve.flatten import FlatTree, flatten
from shmserve.metadata_leaf import Leaf
from shmserve.tree_reader import Array, LeafPlace, TreeReader, lay_out

if TYPE_CHECKING:
    from shmserve._core import _SlotMemory as SlotMemory

#: Structures that are remembered.
REMEMBERED: Final = 64

Encoded = tuple[int, int, int, int]


class _Known:
    """A structure that was sent before."""

    def __init__(self, metadata: bytes, schema: int, expected: tuple[int, ...] | None) -> None:
        self.schema = schema
        self.expected = expected
        self.metadata = np.frombuffer(metadata, np.uint8)
        reader = TreeReader(metadata)
        self.leaves: list[Leaf] = reader.leaves
        self.sizes_count = reader.sizes_count
        self.words = reader.sizes_count + reader.numbers_count
        self.front = struct.Struct(f"@{reader.sizes_count}Q{reader.number_formats}")
        self.latest: tuple[list[int], list[LeafPlace], int] = ([-1], [], 0)

    def layout(self, sizes: list[int]) -> tuple[list[LeafPlace], int]:
        """Return the places of the leaves, and the bytes of the payload."""
        if self.latest[0] != sizes:
            self.latest = sizes, *lay_out(self.leaves, sizes, self.words)
        return self.latest[1:]


class TreeEncoder:
    """Describes and encodes trees."""

    __slots__ = ("_convert", "_known")

    def __init__(self, convert: Convert, /) -> None:
        """`convert` gives the form of values of other types than the walk knows."""
        self._convert = convert
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    def describe(self, tree: Any, /) -> bytes | None:
        """Return the metadata of a tree's structure; None if it cannot be carried."""
        try:
            return flatten(tree, "tree", self._convert).metadata
        except RequestRejected:
            return None

    def remember(self, metadata: bytes, schema: int, expected: tuple[int, ...] | None, /) -> None:
        """Write trees of this structure from now on; `expected`: for each size the one that is declared, or -1."""
        known = _Known(metadata, schema, expected)
        if expected is not None and len(expected) != known.sizes_count:
            raise ValueError(f"expected {known.sizes_count} sizes")
        self._known.pop(metadata, None)
        if len(self._known) >= REMEMBERED:
            self._known.popitem(last=False)
        self._known[metadata] = known

    def forget(self) -> None:
        """Forget every structure."""
        self._known.clear()

    def encode_into(
        self, tree: Any, memory: SlotMemory, slots: object, slot: int, examined: bool, /
    ) -> Encoded | tuple[int, int] | bytes | None:
        """Write a tree into a slot, and return (schema, metadata bytes, payload bytes, write id).

        Or the (metadata bytes, payload bytes) that it needs; the metadata of a structure that is new, or unless `examined`
        of other sizes than declared; None if it cannot be carried. Then nothing is written.
        """
        return self._encode(tree, memory, examined)

    def _put(self, tree: Any, memory: SlotMemory) -> Encoded | tuple[int, int] | bytes | None:
        """As `encode_into` for a fast path, which a tree with leaves in GPU memory cannot take."""
        return self._encode(tree, memory, False, is_fast=True)

    def _encode(
        self, tree: Any, memory: SlotMemory, examined: bool, *, is_fast: bool = False
    ) -> Encoded | tuple[int, int] | bytes | None:
        try:
            flat = flatten(tree, "tree", self._convert)
        except DeviceArrayRefused:
            raise  # never to be pickled instead
        except RequestRejected:
            return None
        if is_fast and any(array is None for array in flat.arrays):
            return None
        known = self._known.get(flat.metadata)
        if known is None or (not examined and not _is_expected(known, flat)):
            return flat.metadata
        if len(self._known) > 1:
            self._known.move_to_end(flat.metadata)
        try:
            places, payload_bytes = known.layout(flat.sizes)
        except ValueError:
            return None
        metadata_bytes = known.metadata.size
        if payload_bytes > memory.payload.size or metadata_bytes > memory.metadata.size:
            return metadata_bytes, payload_bytes
        if memory.written_schema != known.schema:
            memory.written_schema = None  # an interrupt may come between the bytes and this note
            memory.metadata[:metadata_bytes] = known.metadata
            memory.written_schema = known.schema
        _copy(flat, known, places, memory)
        return known.schema, metadata_bytes, payload_bytes, 0


def _is_expected(known: _Known, flat: FlatTree) -> bool:
    if known.expected is None:
        return True
    return all(expected in (-1, size) for expected, size in zip(known.expected, flat.sizes, strict=True))


def _copy(flat: FlatTree, known: _Known, places: list[LeafPlace], memory: SlotMemory) -> None:
    payload = memory.payload
    on_host = [
        (place.view(payload), array) for place, array in zip(places, flat.arrays, strict=True) if array is not None
    ]
    copies = [(view, _separate(array, view, memory)) for view, array in on_host]
    known.front.pack_into(payload.data, 0, *flat.sizes, *flat.numbers)
    # Not memoryview assignment: numpy takes any strides and lets other threads run.
    for view, array in copies:
        if array is not view:
            view[...] = array


def _separate(array: Array, view: Array, memory: SlotMemory) -> Array:
    """Return `array` ready to be copied to `view`: a private copy if an earlier write could overwrite it."""
    if array.base is None or not np.may_share_memory(array, memory.payload):
        return array
    lies, belongs = array.__array_interface__, view.__array_interface__
    if all(lies[key] == belongs[key] for key in ("data", "strides", "shape", "typestr")):
        return view
    private: Array = array.copy()
    return private
