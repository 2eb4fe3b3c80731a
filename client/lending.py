"""What is on loan: a request slot that the caller fills in, a reply that the caller reads in its slot.

The exchange refers to both weakly, so that one which is lost (by an interrupt, by a caller who never entered its block)
has ended, and its slot is free again.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from shmserve.codec import SlotMemory, owned_array
from shmserve.schema import BFLOAT16, Array, LeafLayout

if TYPE_CHECKING:
    from .attachment import Attachment


class LentSlot:
    """A request slot in one thread's hands."""

    __slots__ = ("__weakref__", "_arrays", "attachment", "sequence", "thread")

    def __init__(self, attachment: Attachment, sequence: int, arrays: list[Array]) -> None:
        self.attachment = attachment
        self.sequence = sequence
        self.thread = threading.get_ident()
        self._arrays = arrays

    def end(self) -> None:
        """From now on the slot is somebody else's: whoever kept an array may not write to it."""
        for array in self._arrays:
            array.flags.writeable = False


class LentTree:
    """The arrays of a reply that is lent out, to tell whether any outlives its block."""

    def __init__(self, memory: SlotMemory, thread: int) -> None:
        self.thread = thread
        self._raw = memory.raw.toreadonly()
        self._roots: list[weakref.ref[Array]] = []

    def read_leaf(self, place: LeafLayout, view: Array) -> Any:
        """A leaf of the reply's tree; an array is read-only slot memory."""
        if place.kind != "array" or place.dtype == BFLOAT16 or not place.size:
            return owned_array(place, view)
        # numpy hangs a view of a view on the first array of the chain, so this one lives as long as any of them.
        root = np.frombuffer(self._raw, np.uint8, place.size, place.offset)
        self._roots.append(weakref.ref(root))
        return root.view(place.stored_as).reshape(place.shape)

    def kept(self) -> bool:
        """Whether an array over the memory is still held by somebody."""
        return any(root() is not None for root in self._roots)
