"""Decoder of trees in Python; native/python/tree_decoder.c does the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from shmserve.carried_values import BFLOAT16
from shmserve.tree_reader import Array, TreeReader, leaf_value

Bytes = npt.NDArray[np.uint8]

_uses = itertools.count(1)


class TreeDecoder(TreeReader):
    """Decodes the trees of one structure."""

    __slots__ = ("_all_arrays", "_arrays_count", "is_complete", "last_used", "sizes_count")

    def __init__(self, metadata: bytes, /) -> None:
        """Raises MetadataError for bytes that describe no structure."""
        super().__init__(metadata)
        #: Whether every leaf is made here; none of bfloat16, which numpy does not have, or in GPU memory.
        self.is_complete = not self.has_device and all(leaf.dtype != BFLOAT16 for leaf in self.leaves)
        #: Larger for the decoder that was used later.
        self.last_used = 0
        self._arrays_count = sum(leaf.kind == "array" for leaf in self.leaves)
        self._all_arrays = self._arrays_count == len(self.leaves)

    def decode(self, payload: Bytes, payload_bytes: int, /) -> Any:
        """Return the tree of a payload, its arrays copied; raises ValueError as `layout`."""
        self.last_used = next(_uses)
        places = self.layout(payload, payload_bytes)
        leaves = [
            place.view(payload).copy() if place.kind == "array" else leaf_value(place, payload) for place in places
        ]
        return self.unflatten(self.numbers(payload), leaves)

    def views(self, payload: Bytes, payload_bytes: int, /) -> list[Array]:
        """Return a view of the payload for each array leaf; raises ValueError as `layout`."""
        return [place.view(payload) for place in self.layout(payload, payload_bytes) if place.kind == "array"]

    def decode_over(
        self, payload: Bytes, payload_bytes: int, views: list[Array], wrap: Callable[[Array], Any] | None, /
    ) -> Any:
        """Return the tree over the memory of these views: each array a new view, or the result of `wrap`."""
        self.last_used = next(_uses)
        places = self.layout(payload, payload_bytes)
        if len(views) != self._arrays_count:
            raise TypeError(f"a list of {self._arrays_count} views is needed")
        arrays = [view[...] for view in views] if wrap is None else [wrap(view) for view in views]
        if not self._all_arrays:
            each = iter(arrays)
            arrays = [next(each) if place.kind == "array" else leaf_value(place, payload) for place in places]
        return self.unflatten(self.numbers(payload), arrays)


def stage(payload: Bytes, payload_bytes: int, arena: Bytes, copier: object, write_id: int, /) -> int:
    """Copy a payload into the arena; return the number of bytes that were copied ahead, which is always 0 here."""
    if payload_bytes > min(payload.size, arena.size):
        raise ValueError(f"a payload of {min(payload.size, arena.size)} bytes where {payload_bytes} are needed")
    arena[:payload_bytes] = payload[:payload_bytes]
    return 0
