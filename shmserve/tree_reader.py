"""Reader of a structure's trees in Python: lays a payload out by its sizes, and unflattens the leaves into the tree.

    payload   [sizes: a word for each dimension][numbers: a word each][leaves, each on a 64-byte boundary]
    area      [leaves of kind "device", each on a 256-byte boundary]: GPU memory of the slot

The sizes are the other side's words, which may change meanwhile: they are copied once, checked against the number of bytes
that the slot's head has, and only the copy is used. The pure backend decodes with it, and both backends use it where leaves are read one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .carried_values import BFLOAT16
from .layout import CACHE_LINE, MAX_PAYLOAD_BYTES, WORD, aligned
from .metadata import load
from .metadata_leaf import DEVICE, DEVICE_ALIGNMENT, DTYPES, LEAF_BYTES_LIMIT, NUMBERS, Leaf, MetadataError

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

_STORED_AS: Final = {name: np.dtype(np.uint16) if name == BFLOAT16 else np.dtype(name) for name in DTYPES}
_NUMBER_FORMAT: Final = {"int": "q", "float": "d", "bool": "q"}
#: Error text of a reader that has no GPU memory.
IN_GPU_MEMORY: Final = (
    "an array lies in GPU memory, which this side does not read; send it from the host: .cpu().numpy()"
)


@dataclass(frozen=True)
class LeafPlace:
    """Place of one leaf in a payload, or of one of kind "device" in its slot's area of GPU memory."""

    kind: str  # "array", "device", "scalar", "list", "bytes" or "str"
    dtype: str  # the wire name
    stored_as: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size: int  # bytes

    def view(self, payload: Bytes) -> Array:
        """Return the leaf's bytes in `payload` as an array of its dtype and shape.

        Its base, if it has any bytes, is an array of the leaf alone, made of the memory and not of another array: numpy
        makes it the base of every array derived from the view, so its reference count shows whether the leaf is still held.
        Raises MetadataError for a leaf in GPU memory.
        """
        if self.kind == DEVICE:
            raise MetadataError(IN_GPU_MEMORY)
        if not self.size:
            return np.empty(self.shape, self.stored_as)
        root = np.frombuffer(payload.data, np.uint8, self.size, self.offset)
        return root.view(self.stored_as).reshape(self.shape)


def lay_out(leaves: Sequence[Leaf], sizes: Sequence[int], words: int) -> tuple[list[LeafPlace], int]:
    """Lay leaves out behind that many words; return their places and the number of bytes of the payload.

    Those of kind "device" have places in the slot's area instead, from its beginning. Raises ValueError for sizes that no payload can have.

    >>> places, payload_bytes = lay_out([Leaf("array", "<f4", 2), Leaf("str", "|u1", 1)], [5, 3, 4], words=4)
    >>> [(place.shape, place.offset, place.size) for place in places], payload_bytes
    ([((5, 3), 64, 60), ((4,), 128, 4)], 132)
    """
    end, device_end, at, places = words * WORD, 0, 0, []
    for kind, dtype, dimensions in leaves:
        shape = tuple(sizes[at : at + dimensions])
        at += dimensions
        stored_as = _STORED_AS[dtype]
        size = space = stored_as.itemsize
        for length in shape:
            space *= length or 1  # numpy refuses an empty array, too, whose other dimensions overflow
            size *= length
        if space >= LEAF_BYTES_LIMIT:
            raise ValueError(f"a leaf of {space} bytes: a leaf has fewer than {LEAF_BYTES_LIMIT}")
        offset = aligned(device_end, DEVICE_ALIGNMENT) if kind == DEVICE else aligned(end, CACHE_LINE)
        places.append(LeafPlace(kind, dtype, stored_as, shape, offset, size))
        if kind == DEVICE:
            device_end = offset + size
        else:
            end = offset + size
    if max(end, device_end) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload of {end} bytes and {device_end} on a device: {MAX_PAYLOAD_BYTES} at most each")
    return places, end


class TreeReader:
    """Layout and structure of the trees of one structure."""

    def __init__(self, metadata: bytes) -> None:
        """Raises MetadataError for bytes that describe no structure."""
        tree = load(metadata)
        #: Whether the tree is one value without a container.
        is_leaf_root = not isinstance(tree, (dict, list, tuple)) or type(tree) is Leaf
        structure = _Structure()
        structure.container((tree,) if is_leaf_root else tree)
        #: The leaves that have a place.
        self.leaves = structure.leaves
        #: Whether there are leaves in GPU memory.
        self.has_device = any(leaf.kind == DEVICE for leaf in structure.leaves)
        self.sizes_count = structure.sizes_count
        self._sizes = struct.Struct(f"@{self.sizes_count}Q")
        self.number_formats = "".join(structure.formats)
        self._numbers = struct.Struct("@" + self.number_formats)
        self.numbers_count = len(structure.formats)
        self._words = self.sizes_count + self.numbers_count
        #: Makes the tree with these numbers and leaves, each in the order of the payload.
        self.unflatten = _unflattener(
            structure.containers(), structure.constants, structure.bools, is_leaf_root=is_leaf_root
        )
        self._latest: tuple[bytes, int, list[LeafPlace]] = (b"", -1, [])

    def layout(self, payload: Bytes, payload_bytes: int) -> list[LeafPlace]:
        """Return the places of the leaves in a payload of that many bytes.

        Raises ValueError if the payload is shorter, or if its sizes describe another number of bytes.
        """
        return self.layout_of(self.sizes(payload, payload_bytes), payload_bytes)

    def sizes(self, payload: Bytes, payload_bytes: int) -> bytes:
        """Return a copy of the sizes of a payload of that many bytes; raises ValueError if it is shorter."""
        if payload_bytes > payload.size:
            raise ValueError(f"a payload of {payload.size} bytes where {payload_bytes} are needed")
        if payload_bytes < self._sizes.size:
            raise ValueError(f"a payload of {payload_bytes} bytes is shorter than its sizes")
        return payload[: self._sizes.size].tobytes()

    def places_of(self, sizes: bytes) -> list[LeafPlace]:
        """Return the places of the leaves by these sizes; raises ValueError for sizes that no payload can have."""
        if self._latest[0] != sizes or self._latest[1] < 0:
            places, described = lay_out(self.leaves, self._sizes.unpack(sizes), self._words)
            self._latest = sizes, described, places
        return self._latest[2]

    def layout_of(self, sizes: bytes, payload_bytes: int) -> list[LeafPlace]:
        """As `layout`, by a copy of the sizes."""
        if self._latest[0] == sizes and self._latest[1] == payload_bytes:
            return self._latest[2]
        places, described = lay_out(self.leaves, self._sizes.unpack(sizes), self._words)
        if described != payload_bytes:
            raise ValueError(f"the sizes describe a payload of {described} bytes, the slot's head {payload_bytes}")
        self._latest = sizes, payload_bytes, places
        return places

    def payload_bytes(self, sizes: Sequence[int]) -> int:
        """Return the number of bytes of a payload of these sizes; raises ValueError for sizes that no payload can have."""
        return lay_out(self.leaves, sizes, self._words)[1]

    def numbers(self, payload: Bytes) -> tuple[Any, ...]:
        """Return the numbers of a payload that was laid out."""
        return self._numbers.unpack_from(payload.data, self._sizes.size)


def leaf_value(place: LeafPlace, payload: Bytes) -> Any:
    """Return a leaf that is not an array and not of bfloat16: a text, bytes, a list of numbers, or a numpy scalar.

    Raises MetadataError for one in GPU memory.
    """
    if place.kind == DEVICE:
        raise MetadataError(IN_GPU_MEMORY)
    data = payload[place.offset : place.offset + place.size].tobytes()
    if place.kind == "bytes":
        return data
    if place.kind == "str":
        return data.decode("utf-8", "surrogatepass")
    values = np.frombuffer(data, place.stored_as)
    return values.tolist() if place.kind == "list" else values[0]


#: Indices of a container's entries in `[numbers..., leaves..., constants..., containers...]`, its keys, its type.
_ContainerSpec = tuple[tuple[int, ...], tuple[Any, ...] | None, type]
_Gather = Callable[[Sequence[Any]], Sequence[Any]]
_Unflatten = Callable[[Sequence[Any], Sequence[Any]], Any]


def _unflattener(
    containers: list[_ContainerSpec], constants: list[Any], bools: list[int], *, is_leaf_root: bool
) -> _Unflatten:
    """Return the function that makes the tree. Inner containers come before outer ones; the outermost is the last."""
    gathers = [(_gather(entries), keys, kind) for entries, keys, kind in containers]

    def unflatten(numbers: Sequence[Any], leaves: Sequence[Any]) -> Any:
        values = [*numbers, *leaves, *constants]
        for index in bools:
            values[index] = bool(values[index])
        for gather, keys, kind in gathers:
            entries = gather(values)
            values.append(dict(zip(keys, entries)) if keys is not None else kind(entries))  # noqa: B905
        return values[-1][0] if is_leaf_root else values[-1]

    ((gather, keys, _), *nested) = gathers
    if nested or bools or keys is None:
        return unflatten

    def unflatten_one(numbers: Sequence[Any], leaves: Sequence[Any]) -> Any:
        return dict(zip(keys, gather((*numbers, *leaves, *constants))))  # noqa: B905

    return unflatten_one


class _Structure:
    """Leaves and constants of a tree in the order of a walk, and which of them each container holds."""

    def __init__(self) -> None:
        self.formats: list[str] = []  # of the numbers
        self.bools: list[int] = []  # numbers that are bools, which travel as integers
        self.leaves: list[Leaf] = []  # all others in the payload
        self.constants: list[Any] = []
        self.sizes_count = 0
        self._containers: list[tuple[list[tuple[list[Any], int]], tuple[Any, ...] | None, type]] = []

    def container(self, container: Any) -> int:
        """Note its entries; returns its index among the containers."""
        keys = tuple(container) if type(container) is dict else None
        values = container.values() if type(container) is dict else container
        # Each entry as (the list that it is in, its place there).
        entries = [self._entry(value) for value in values]
        self._containers.append((entries, keys, type(container)))
        return len(self._containers) - 1

    def _entry(self, value: Any) -> tuple[list[Any], int]:
        if type(value) is Leaf:
            self.sizes_count += value.dimensions
            if value.kind in NUMBERS:
                if value.kind == "bool":
                    self.bools.append(len(self.formats))
                self.formats.append(_NUMBER_FORMAT[value.kind])
                return self.formats, len(self.formats) - 1
            self.leaves.append(value)
            return self.leaves, len(self.leaves) - 1
        if type(value) in (dict, list, tuple):
            return self._containers, self.container(value)
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
