"""Brings actions from the device to page-locked memory of the host, from where the reply is written."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from shmserve.base_values import as_base, plain_tree
from shmserve.layout import CACHE_LINE, aligned

from .interface import Device
from .pinned_pool import PinnedPool

#: Places that are remembered with their tensors; a policy has a few.
_REMEMBERED = 256
_LEAST = 64 * 1024


class Readback:
    """Used by one batch at a time: `begin`, `fetch` each action, and wait for an event before any is read."""

    def __init__(self, device: Device, host: PinnedPool) -> None:
        self._device = device
        self._source = host
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._places: dict[tuple[int, torch.dtype, torch.Size], torch.Tensor] = {}
        self._end = 0

    @property
    def size(self) -> int:
        return int(self._memory.numel())

    @property
    def pending(self) -> bool:
        """Whether anything comes from the device since `begin`."""
        return self._end > 0

    def begin(self) -> None:
        """Whatever was fetched before has been read."""
        self._end = 0

    def fetch(self, tree: Any) -> Any:
        """The same tree with tensors of the host where it has those of the device; they are being filled."""
        try:
            return self._fetch(tree)
        except RecursionError:
            return plain_tree(tree, "action")  # which says where the circle is

    def _fetch(self, tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            near = tree if self._device.holds(tree) else self._device.bring(tree)
            return tree if near is None else self._copied(near)
        kind = type(tree)
        if kind is dict:
            return {key: self._fetch(value) for key, value in tree.items()}
        if kind in (list, tuple):
            return kind(self._fetch(value) for value in tree)
        if issubclass(kind, (dict, list, tuple)):  # as the codec carries it, which says what cannot be
            with contextlib.suppress(ValueError):
                return self._fetch(as_base(tree)[0])
        return tree

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return tensor  # the codec says what it thinks of these
        size = tensor.numel() * tensor.element_size()
        if self._end + size > self.size:
            # What was fetched before keeps its memory alive, and is read from there.
            self._memory = self._source.take(max(2 * self.size, aligned(size), _LEAST))
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
    """The tree with copies of its tensors, for whoever keeps it longer than the batch."""
    if isinstance(tree, torch.Tensor):
        return tree.clone()
    kind = type(tree)
    if kind is dict:
        return {key: private(value) for key, value in tree.items()}
    if kind in (list, tuple):
        return kind(private(value) for value in tree)
    return tree
