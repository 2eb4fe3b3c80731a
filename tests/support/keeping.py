"""The ways in which a policy may keep a tensor of its observation, and some that look like it."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import dlpack
from torch.utils.data import default_collate


class Mine(torch.Tensor):  # type: ignore[misc]
    """A policy's own kind of tensor."""


class _Reader:
    """A thread that looks at what it was given when it is told to."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._go = threading.Event()
        self._found: list[Any] = []
        self._thread = threading.Thread(target=self._read, args=(tensor,), daemon=True)
        self._thread.start()

    def _read(self, tensor: torch.Tensor) -> None:
        self._go.wait()
        self._found = tensor.tolist()

    def __call__(self) -> torch.Tensor:
        self._go.set()
        self._thread.join()
        return torch.tensor(self._found)


def _in_a_circle(tensor: torch.Tensor) -> list[Any]:
    circle: list[Any] = [tensor]
    circle.append(circle)
    return circle


#: Each gives something from which the whole tensor can still be read.
WAYS_OF_KEEPING: dict[str, Callable[[torch.Tensor], Any]] = {
    "whole": lambda tensor: tensor,
    "in a list twice": lambda tensor: [tensor, tensor],
    "in a circle": _in_a_circle,
    "view": lambda tensor: tensor.view(-1, 1),
    "slice": lambda tensor: tensor[0:],
    "transposed": lambda tensor: tensor.view(-1, 1).T,
    "detached": lambda tensor: tensor.detach(),
    "data": lambda tensor: tensor.data,
    "own kind of tensor": lambda tensor: tensor.as_subclass(Mine),
    "parameter": lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    "closure": lambda tensor: lambda: tensor,
    "thread": _Reader,
    "storage": lambda tensor: (tensor.untyped_storage(), tensor.storage_offset(), tensor.numel()),
    "dlpack": torch.from_dlpack,
    "capsule": dlpack.to_dlpack,
    "numpy": lambda tensor: tensor.numpy(),
    "slice of numpy": lambda tensor: tensor.numpy()[0:],
    "memoryview": lambda tensor: memoryview(tensor.numpy()),
    "ctypes of numpy": lambda tensor: np.ctypeslib.as_ctypes(tensor.numpy()),
}

#: A copy, or nothing that keeps memory: an address is a number, and nobody can see that it is still used.
WAYS_OF_NOT_KEEPING: dict[str, Callable[[torch.Tensor], Any]] = {
    "nothing": lambda tensor: None,
    "clone": lambda tensor: tensor.clone(),
    "collated": lambda tensor: default_collate([tensor]),
    "weakly": weakref.ref,
    "address": lambda tensor: (ctypes.c_float * 1).from_address(tensor.data_ptr()),
}


def state_in(kept: Any) -> npt.NDArray[Any]:
    """The numbers of the tensor that was kept in any of `WAYS_OF_KEEPING`."""
    if isinstance(kept, list):
        kept = kept[0]
    if isinstance(kept, tuple):
        storage, offset, count = kept
        kept = torch.empty(0).set_(storage, offset, (count,))
    if type(kept).__name__ == "PyCapsule":
        kept = dlpack.from_dlpack(kept)
    if callable(kept) and not isinstance(kept, (torch.Tensor, ctypes.Array)):
        kept = kept()
    if isinstance(kept, torch.Tensor):
        kept = kept.detach().cpu().as_subclass(torch.Tensor).numpy()
    return np.asarray(kept).reshape(-1)


#: As `WAYS_OF_KEEPING`, of a numpy array.
WAYS_OF_KEEPING_ARRAYS: dict[str, Callable[[npt.NDArray[Any]], Any]] = {
    "whole": lambda array: array,
    "slice": lambda array: array[0:],
    "transposed": lambda array: array.reshape(-1, 1).T,
    "other dtype": lambda array: array.view(np.uint8),
    "own kind of array": lambda array: array.view(np.recarray),
    "tensor": torch.from_numpy,
    "dlpack": np.from_dlpack,
    "memoryview": memoryview,  # type: ignore[dict-item]
    "ctypes": np.ctypeslib.as_ctypes,
    "closure": lambda array: lambda: array,
}
