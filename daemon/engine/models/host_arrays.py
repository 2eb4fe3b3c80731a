"""Observations and actions of a model that is called with arrays in host memory, wherever it runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def tensors_of(tree: Any, device: torch.device) -> Any:
    """Return the tree with its arrays as tensors on `device`; on the CPU a writable array is not copied."""
    kind = type(tree)
    if kind is dict:
        return {key: tensors_of(value, device) for key, value in tree.items()}
    if kind in (list, tuple):
        return kind(tensors_of(value, device) for value in tree)
    if kind is np.ndarray:
        return torch.from_numpy(tree if tree.flags.writeable else tree.copy()).to(device)
    return tree


def on_host(tree: Any) -> Any:
    """Return the tree with its tensors in host memory."""
    if isinstance(tree, torch.Tensor):
        return tree.cpu()
    if type(tree) is dict:
        return {key: on_host(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(on_host(value) for value in tree)
    return tree
