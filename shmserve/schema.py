"""The structure of one tree as its receiver knows it: where its leaves lie, and how it is put together again.

A robot sends the same structure thousands of times. It is described and compiled once; afterwards a
`Matcher` (description.py) on the sending side compares a tree with it and collects what has to be
copied, and the `Schema` on the receiving side puts the values back in place.

Both sides place a tree's leaves by the same walk over the same tree: a container's own leaves first,
then its nested containers in order. Numbers lie together at the start of the payload, 8 bytes each;
every array follows on a 64-byte boundary.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .layout import CACHE_LINE, MAX_PAYLOAD_BYTES, aligned
from .metadata import DTYPES, Leaf, MetadataError, load

Array = npt.NDArray[Any]

#: bfloat16 has no numpy dtype of its own; its bytes travel as uint16.
BFLOAT16 = "<bf2"
_STORED_AS = {name: np.dtype(np.uint16) if name == BFLOAT16 else np.dtype(name) for name in DTYPES}
_NUMBER_FORMAT = {"int": "q", "float": "d", "bool": "q"}


@dataclass(frozen=True)
class ArrayPlace:
    """Where one array-like leaf lies in the payload."""

    kind: str  # "array", "scalar", "list", "bytes" or "str"
    dtype: str  # the wire name
    stored_as: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size: int  # bytes

    def view(self, payload: npt.NDArray[np.uint8]) -> Array:
        """The leaf's bytes in `payload` as an array of its dtype and shape."""
        return payload[self.offset : self.offset + self.size].view(self.stored_as).reshape(self.shape)


class _Node:
    """One container: which positions hold numbers, arrays, nested containers, constants."""

    __slots__ = ("arrays", "keys", "kind", "nested", "numbers", "template", "truths")

    def __init__(self, container: dict[str, Any] | list[Any] | tuple[Any, ...]) -> None:
        self.kind = type(container)
        self.keys: tuple[str, ...] | None = None
        if isinstance(container, dict):
            self.keys = tuple(container)
            values: Sequence[Any] = tuple(container.values())
        else:
            values = container
        self.template: list[Any] = list(values)
        self.numbers: list[tuple[int, int]] = []  # (position in the container, index among the numbers)
        self.truths: list[int] = []  # positions of bools, which travel as integers
        self.arrays: list[tuple[int, int]] = []
        self.nested: list[tuple[int, _Node]] = []


class Schema:
    """What both sides know of one structure: its metadata bytes and where its leaves lie."""

    def __init__(self, tree: Any, metadata: bytes) -> None:
        """Compile `tree`, which holds a `Leaf` wherever a value lies in the payload."""
        self.metadata = metadata
        self.arrays: list[ArrayPlace] = []
        self._formats: list[str] = []
        self._leaves: list[tuple[Leaf, int]] = []
        self.bare = not isinstance(tree, (dict, list, tuple))
        self.root = self._compile((tree,) if self.bare else tree)
        self.numbers = struct.Struct("@" + "".join(self._formats))
        self._end = self.numbers.size
        for leaf, _ in self._leaves:
            self._place(leaf)
        #: Bytes of payload that a tree of this structure takes.
        self.payload_bytes = self._end
        if self.payload_bytes > MAX_PAYLOAD_BYTES:
            raise MetadataError(f"a payload of {self.payload_bytes} bytes: {MAX_PAYLOAD_BYTES} at most")

    @classmethod
    def from_metadata(cls, metadata: bytes) -> Schema:
        """The schema that a peer describes; raises MetadataError for bytes that describe none."""
        tree, _ = load(metadata)
        return cls(tree, metadata)

    def _compile(self, container: Any) -> _Node:
        node = _Node(container)
        containers = []
        for position, value in enumerate(node.template):
            if isinstance(value, Leaf):
                if value.kind in _NUMBER_FORMAT:
                    node.numbers.append((position, len(self._formats)))
                    self._formats.append(_NUMBER_FORMAT[value.kind])
                    if value.kind == "bool":
                        node.truths.append(position)
                else:
                    node.arrays.append((position, len(self._leaves)))
                    self._leaves.append((value, position))
            elif isinstance(value, (dict, list, tuple)):
                containers.append((position, value))
        node.nested = [(position, self._compile(value)) for position, value in containers]
        return node

    def _place(self, leaf: Leaf) -> None:
        stored_as = _STORED_AS[leaf.dtype]
        size = stored_as.itemsize
        for length in leaf.shape:
            size *= length  # Python ints: no overflow to hide behind
        offset = aligned(self._end, CACHE_LINE)
        self.arrays.append(ArrayPlace(leaf.kind, leaf.dtype, stored_as, leaf.shape, offset, size))
        self._end = offset + size

    def build(self, numbers: Sequence[Any], arrays: Sequence[Any]) -> Any:
        """The tree, with these values for its leaves (each in the order of its places)."""
        tree = _build(self.root, numbers, arrays)
        return tree[0] if self.bare else tree


def _build(node: _Node, numbers: Sequence[Any], arrays: Sequence[Any]) -> Any:
    values = node.template.copy()
    for position, index in node.numbers:
        values[position] = numbers[index]
    for position in node.truths:
        values[position] = bool(values[position])
    for position, index in node.arrays:
        values[position] = arrays[index]
    for position, child in node.nested:
        values[position] = _build(child, numbers, arrays)
    if node.keys is not None:
        return dict(zip(node.keys, values, strict=True))
    return tuple(values) if node.kind is tuple else values
