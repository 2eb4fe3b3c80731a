"""Staging of observations in host memory (for arrays on a GPU: device/arena.py)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shmserve.backend import core
from shmserve.codec import SlotMemory, named_dtype, plain_leaf, unpickle_parts
from shmserve.layout import CACHE_LINE
from shmserve.schema import BFLOAT16, Array, LeafLayout, Schema

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
        copier: core.CutThroughCopier | None = None,
        fast_path: core.ServerFastPath | None = None,
    ) -> None:
        """Stage for tensors on the device `tensors_on`, or as numpy arrays if it is None.

        `copier` makes the cut-through copy into the arena while the client is still writing; `fast_path` stages its
        requests there as well.
        """
        self._device = tensors_on
        self._on_host = tensors_on is None or tensors_on.type == "cpu"
        #: The memory that observations are copied to.
        self.arena = SlotMemory(_NO_METADATA, _NO_METADATA)
        self._copier = copier
        self._fast_path = fast_path
        #: Bytes of the latest observation that were copied before its client had finished writing it.
        self.cut_through_bytes = 0

    def observation(self, schema: Schema, slot: SlotMemory, *, in_place: bool, pickled: bool, write_id: int = 0) -> Any:
        """Return the tree in `slot`, its arrays as the model takes them; `write_id` is that of the request's head."""
        decoder = schema.decoder
        if in_place:
            source = slot
        else:
            size = schema.payload_bytes
            source = self.arena
            if source.room < size:
                source = SlotMemory(_NO_METADATA, aligned_bytes(size))
                self._replace(source, source.payload)
            # The only copy of the payload: later writes of the client are not seen.
            if decoder is not None:
                self.cut_through_bytes = decoder.stage(slot.payload, source.payload, self._copier, write_id)
            else:
                source.prefix_views[size][...] = slot.prefix_views[size]
        views = source.leaf_views[schema]
        if decoder is not None and schema.is_all_arrays and self._on_host and not pickled:
            if self._device is None:
                return decoder.decode_in_place(source.payload, views)
            return decoder.unflatten(source.payload, [_from_numpy(view) for view in views])
        numbers = schema.numbers.unpack_from(source.raw, 0)
        if pickled:
            tree = unpickle_parts(schema.unflatten(numbers, views), "observation")
            return tree if self._device is None else self._tensors(tree)
        if not schema.is_all_arrays or not self._on_host:
            leaves = [self._leaf(place, view) for place, view in zip(schema.arrays, views, strict=True)]
        elif self._device is None:
            leaves = [view[...] for view in views]  # new objects, because a policy may change their shape
        else:
            leaves = [_from_numpy(view) for view in views]
        return schema.unflatten(numbers, leaves)

    def give_back(self, schema: Schema) -> None:
        """Keep the arena for the next request, unless the policy still holds part of it after the reply."""
        if self.arena.room >= schema.payload_bytes:
            self.keep_unless_held(self.arena.leaf_views[schema])

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
        if self._copier is not None:
            self._copier.set_target(copied_to)
        if self._fast_path is not None:
            self._fast_path.reset()

    def _leaf(self, place: LeafLayout, view: Array) -> Any:
        if place.kind != "array":
            return plain_leaf(place, view)
        if self._device is None:
            return named_dtype(place, view[...])
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


def calibrate() -> None:
    """Measure the reference counts that `keep_unless_held` sees without other holders, with that very loop.

    They differ between versions of Python: 3.14 does not count a variable that only lends an object to a call. If held
    and unheld arrays cannot be distinguished, all count as held, and every request gets new memory.
    """
    staging = Staging(None)
    memory = aligned_bytes(2 * CACHE_LINE)
    views = [LeafLayout("array", "<f4", np.dtype("<f4"), (4,), at, 16).view(memory) for at in (0, CACHE_LINE)]

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
