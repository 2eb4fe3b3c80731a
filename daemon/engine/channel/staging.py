"""Staging of observations in host memory (for arrays on a GPU: device/arena.py)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shmserve.backend import CutThroughCopier, ServerFastPath, stage
from shmserve.carried_values import BFLOAT16
from shmserve.codec import SlotMemory, named_dtype, plain_leaf, read_tree, unpickle_parts
from shmserve.layout import CACHE_LINE, aligned
from shmserve.metadata import MetadataError
from shmserve.schema import Array, LeafPlace, Schema

_from_numpy = torch.from_numpy
_NO_METADATA = np.empty(0, np.uint8)
#: Calls after which the interpreter has specialised a function.
_WARMING_CALLS = 200
#: Reference counts that `keep_unless_held` sees of an unheld view, and of such a view's base; set by `calibrate`.
_unheld = [0, 0]


def aligned_bytes(size: int) -> npt.NDArray[np.uint8]:
    """Return `size` bytes that begin on a cache line; a kernel copy to 16-byte alignment is ten times slower."""
    tensor = torch.empty(size + CACHE_LINE, dtype=torch.uint8, device="cpu")  # a policy may have set another default
    start = -tensor.data_ptr() % CACHE_LINE
    array: npt.NDArray[np.uint8] = tensor.numpy()[start : start + size]
    return array


def tensor_of(dtype: str, view: Array) -> torch.Tensor:
    """Return a tensor over the same memory."""
    if dtype == BFLOAT16:
        return torch.from_numpy(view.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(view)


class Staging:
    """One channel's observation on its way to the model: a private copy, or the slot itself.

    The arena is allocated once for the largest observation and reused for the next one. If the policy has kept
    a tensor of it, that memory is left to the policy and a new arena is allocated.
    """

    def __init__(
        self,
        tensors_on: torch.device | None,
        copier: CutThroughCopier | None = None,
        fast_path: ServerFastPath | None = None,
    ) -> None:
        """Stage for tensors on the device `tensors_on`, or as numpy arrays if it is None.

        `copier` makes the cut-through copy into the arena while the client is still writing; `fast_path` stages its
        requests there as well.
        """
        self._device = tensors_on
        self._on_host = tensors_on is None or tensors_on.type == "cpu"
        self._wrap = None if tensors_on is None else _from_numpy
        #: The memory that observations are copied to.
        self.arena = SlotMemory(_NO_METADATA, _NO_METADATA)
        self._copier = copier
        self._fast_path = fast_path
        #: Bytes of the latest observation that were copied before its client had finished writing it.
        self.cut_through_bytes = 0
        #: Arrays of the latest structure over the memory that it was read from: (schema, its sizes, that memory, arrays).
        self._views: tuple[Schema | None, bytes, SlotMemory | None, list[Array]] = (None, b"", None, [])

    def observation(
        self, schema: Schema, slot: SlotMemory, payload_bytes: int, *, in_place: bool, pickled: bool, write_id: int = 0
    ) -> Any:
        """Return the tree in `slot`, its arrays as the model takes them; `write_id` is that of the request's head.

        Raises MetadataError for sizes that do not describe that many bytes, and for a text that cannot be read.
        """
        if in_place:
            source = slot
        else:
            source = self.arena
            if source.room < payload_bytes:
                # Lengths may grow a little with each request, so the arena grows by more.
                size = min(slot.room, max(payload_bytes, aligned(source.room + source.room // 2)))
                if payload_bytes > size:
                    raise MetadataError(f"{payload_bytes} bytes of payload in a slot of {slot.room}")
                source = SlotMemory(_NO_METADATA, aligned_bytes(size))
                self._replace(source, source.payload)
            # The only copy of the payload: later writes of the client are not seen.
            try:
                self.cut_through_bytes = stage(slot.payload, payload_bytes, source.payload, self._copier, write_id)
            except ValueError as error:
                raise MetadataError(str(error)) from None
        if schema.decoder.is_complete and self._on_host and not pickled:
            try:
                views = self._views_of(schema, source, payload_bytes)
                return schema.decoder.decode_over(source.payload, payload_bytes, views, self._wrap)
            except ValueError as error:
                raise MetadataError(str(error)) from None
        if pickled:
            tree = unpickle_parts(read_tree(schema, source.payload, payload_bytes, _view), "observation")
            return tree if self._device is None else self._tensors(tree)
        views = []

        def read_leaf(place: LeafPlace, payload: npt.NDArray[np.uint8]) -> Any:
            if place.kind != "array":
                return plain_leaf(place, payload)
            views.append(place.view(payload))
            return self._array(place, views[-1])

        self._views = None, b"", source, views
        return read_tree(schema, source.payload, payload_bytes, read_leaf)

    def _views_of(self, schema: Schema, source: SlotMemory, payload_bytes: int) -> list[Array]:
        """Return views of the payload's arrays: those of the last request if it had the same structure and sizes."""
        sizes = schema.sizes(source.payload)
        known, known_sizes, memory, views = self._views
        if known is not schema or known_sizes != sizes or memory is not source:
            views = schema.decoder.views(source.payload, payload_bytes)
            self._views = schema, sizes, source, views
        return views

    def give_back(self) -> None:
        """Keep the arena for the next request, unless the policy still holds part of it after the reply."""
        if self._views[2] is self.arena:
            self.keep_unless_held(self._views[3])

    def keep_unless_held(self, views: list[Array]) -> None:
        """Keep the arena unless the policy holds part of an observation that was made from these views of it."""
        # A tensor keeps a reference to the view that it was made from, an array one to the view's base.
        of_view, of_base = _unheld
        for view in views:
            if sys.getrefcount(view) > of_view or (view.size and sys.getrefcount(view.base) > of_base):
                self._replace(SlotMemory(_NO_METADATA, _NO_METADATA), None)
                return

    def _replace(self, arena: SlotMemory, copied_to: npt.NDArray[np.uint8] | None) -> None:
        """Use this arena from now on; `copied_to` is its memory, or None while it has none."""
        self.arena = arena
        self._views = None, b"", None, []
        if self._copier is not None:
            self._copier.set_target(copied_to)
        if self._fast_path is not None:
            if copied_to is None:
                self._fast_path.reset()
            else:
                self._fast_path.use_arena(copied_to)

    def _array(self, place: LeafPlace, view: Array) -> Any:
        if self._device is None:
            return named_dtype(place, view[...])  # a new object, because a policy may change its shape
        tensor = tensor_of(place.dtype, view)
        return tensor if self._on_host else tensor.to(self._device, non_blocking=True)

    def _tensors(self, tree: Any) -> Any:
        """Return an unpickled tree with its plain arrays as tensors, other objects as they are."""
        kind = type(tree)
        if kind is dict:
            return {key: self._tensors(value) for key, value in tree.items()}
        if kind in (list, tuple):
            return kind(self._tensors(value) for value in tree)
        if kind is np.ndarray and tree.dtype.kind in "biufc":
            writable = tree if tree.flags.writeable else tree.copy()
            # Not ascontiguousarray(), which gives an array without dimensions one.
            native = np.asarray(writable, writable.dtype.newbyteorder("="), order="C")
            return torch.from_numpy(native).to(self._device)
        return tree


def _view(place: LeafPlace, payload: npt.NDArray[np.uint8]) -> Array:
    return place.view(payload)


def calibrate() -> None:
    """Measure the reference counts that `keep_unless_held` sees without other holders, with that very loop.

    They differ between versions of Python: 3.14 does not count a variable that only lends an object to a call. If held
    and unheld arrays cannot be distinguished, all count as held, and every request gets new memory.
    """
    staging = Staging(None)
    memory = aligned_bytes(2 * CACHE_LINE)
    views = [LeafPlace("array", "<f4", np.dtype("<f4"), (4,), at, 16).view(memory) for at in (0, CACHE_LINE)]

    def is_kept(of_view: int, of_base: int) -> bool:
        _unheld[:] = of_view, of_base
        before = staging.arena
        staging.keep_unless_held(views)
        return staging.arena is not before

    def least() -> tuple[int, int]:
        of_view = next(count for count in range(sys.maxsize) if not is_kept(count, sys.maxsize))
        return of_view, next(count for count in range(sys.maxsize) if not is_kept(of_view, count))

    cold = least()
    for _ in range(_WARMING_CALLS):  # the interpreter rewrites a loop that runs often
        is_kept(*cold)
    of_view, of_base = map(min, cold, least())
    held = views[1]
    told = is_kept(of_view, of_base)
    held = views[1][1:]
    told = told and is_kept(of_view, of_base)
    del held
    _unheld[:] = (of_view, of_base) if told else (0, 0)


calibrate()
