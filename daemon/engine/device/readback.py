"""Readback of actions from the device to page-locked memory of the host, from which replies are written."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from shmserve.base_values import as_base, plain_tree
from shmserve.layout import CACHE_LINE, aligned

from .interface import Device
from .pinned_pool import PinnedPool

#: Cached tensors of the host, by offset, dtype and shape; a policy needs a few.
_REMEMBERED = 256
_LEAST = 64 * 1024


class Readback:
    """Readback for one batch at a time: `begin`, `fetch` each action, and wait for an event before reading any."""

    def __init__(self, device: Device, host: PinnedPool) -> None:
        self._device = device
        self._source = host
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._places: dict[tuple[int, torch.dtype, torch.Size], torch.Tensor] = {}
        self._end = 0
        #: Whether results of the current batch are in memory that was outgrown.
        self._outgrown = False

    @property
    def size(self) -> int:
        return int(self._memory.numel())

    @property
    def filled(self) -> int:
        """Bytes of the current batch's results."""
        return self._end

    def replayed(self, filled: int) -> None:
        """Note that a graph was launched whose copies from the device fill as many bytes."""
        self._end = filled

    @property
    def pending(self) -> bool:
        """Whether copies from the device were started since `begin`."""
        return self._end > 0

    def begin(self) -> None:
        """Start a batch; all earlier results must have been read."""
        self._end = 0
        if self._outgrown:
            self._outgrown = False
            self._source.trim()

    def fetch(self, tree: Any) -> Any:
        """Return the tree with the device's tensors replaced by tensors of the host, whose copies have been started."""
        try:
            return self._fetch(tree)
        except RecursionError:
            return plain_tree(tree, "action")  # its error names the place of the cycle

    def _fetch(self, tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            near = tree if self._device.holds(tree) else self._device.bring(tree)
            return tree if near is None else self._copied(near)
        kind = type(tree)
        if kind is dict:
            return {key: self._fetch(value) for key, value in tree.items()}
        if kind in (list, tuple):
            return kind(self._fetch(value) for value in tree)
        if issubclass(kind, (dict, list, tuple)):  # as the codec sends it, which reports unsupported types
            with contextlib.suppress(ValueError):
                return self._fetch(as_base(tree)[0])
        return tree

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return tensor  # the codec reports that these are not supported
        size = tensor.numel() * tensor.element_size()
        if self._end + size > self.size:
            # Earlier results keep their memory alive, and are read from there.
            self._source.forget(self._memory)
            self._memory = self._source.take(max(2 * self.size, aligned(size), _LEAST))
            self._outgrown = True
            self._places.clear()
            self._end = 0
        key = (self._end, tensor.dtype, tensor.shape)
        target = self._places.get(key)
        if target is None:
            if len(self._places) >= _REMEMBERED:
                self._places.clear()
            flat = self._memory[self._end : self._end + size]
            target = self._places[key] = flat.view(tensor.dtype).view(tensor.shape)
        self._end = aligned(self._end + max(size, 1), CACHE_LINE)
        self._device.copy_out(target, tensor.detach())
        return target


def private(tree: Any) -> Any:
    """Return the tree with copies of its tensors, to be kept longer than the batch."""
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    kind = type(tree)
    if kind is dict:
        return {key: private(value) for key, value in tree.items()}
    if kind in (list, tuple):
        return kind(private(value) for value in tree)
    return tree
