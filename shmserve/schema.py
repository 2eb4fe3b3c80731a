"""Schema of one structure: its metadata, and the decoder of its trees.

A robot sends the same structure thousands of times, with other lengths each time. The schema says which leaves a tree has,
of which kind, dtype and number of dimensions; the lengths stand at the front of each payload:

    payload   [sizes: a word for each dimension][numbers: a word each][leaves, each on a 64-byte boundary]

One function lays the leaves out by the sizes, the same on both sides: `lay_out` in native/core/schema.c, and in
tree_reader.py.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .backend import TreeDecoder
from .metadata import MetadataError, dump, load
from .metadata_leaf import DEVICE, Leaf
from .tree_reader import Array, LeafPlace, TreeReader

__all__ = ["Array", "LeafPlace", "Schema"]


class Schema:
    """One structure that a side knows."""

    def __init__(self, metadata: bytes) -> None:
        """Raises MetadataError for bytes that describe no structure."""
        self.metadata = metadata
        try:
            #: Makes the trees, in the backend's own code.
            self.decoder = TreeDecoder(metadata)
        except MetadataError:
            raise
        except ValueError:
            load(metadata)  # says why
            raise MetadataError("metadata refused") from None

    @cached_property
    def reader(self) -> TreeReader:
        """The reader in Python, for leaves that are read one by one."""
        return TreeReader(self.metadata)

    def sizes(self, payload: npt.NDArray[np.uint8]) -> bytes:
        """Return a copy of the sizes at the front of a payload."""
        return payload[: 8 * self.decoder.sizes_count].tobytes()

    def layout(self, payload: npt.NDArray[np.uint8], payload_bytes: int) -> list[LeafPlace]:
        """Return the places of the leaves; raises MetadataError for sizes that do not describe that many bytes."""
        try:
            return self.reader.layout(payload, payload_bytes)
        except ValueError as error:
            raise MetadataError(str(error)) from None

    @cached_property
    def _on_host(self) -> Schema:
        """The same structure with its arrays in GPU memory on the host."""
        return Schema(dump(_on_host(load(self.metadata))))

    def as_arrays(self, payload: npt.NDArray[np.uint8], payload_bytes: int) -> tuple[Schema, list[LeafPlace]]:
        """Return the structure and the places that the tree would have with all of its arrays on the host.

        Raises MetadataError as `layout`.
        """
        if not self.reader.has_device:
            return self, self.layout(payload, payload_bytes)
        return self._on_host, self.both_layouts(payload, payload_bytes)[1]

    def both_layouts(
        self, payload: npt.NDArray[np.uint8], payload_bytes: int
    ) -> tuple[list[LeafPlace], list[LeafPlace]]:
        """Return the places of `layout` and of `as_arrays`, by one copy of the sizes; raises MetadataError as `layout`."""
        try:
            sizes = self.reader.sizes(payload, payload_bytes)
            return self.reader.layout_of(sizes, payload_bytes), self._on_host.reader.places_of(sizes)
        except ValueError as error:
            raise MetadataError(str(error)) from None

    def decode(self, payload: npt.NDArray[np.uint8], payload_bytes: int) -> Any:
        """Return the tree of a payload, with arrays of its own; raises MetadataError as `layout`, and for a broken text."""
        try:
            return self.decoder.decode(payload, payload_bytes)
        except ValueError as error:
            raise MetadataError(str(error)) from None


def _on_host(tree: Any) -> Any:
    if type(tree) is Leaf:
        return tree._replace(kind="array") if tree.kind == DEVICE else tree
    if type(tree) is dict:
        return {key: _on_host(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_on_host(value) for value in tree)
    return tree
