"""Puts the arguments of several requests into one call along a first dimension, and takes what comes out apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def stacked(rows: Sequence[Any]) -> Any:
    """One tree out of the rows' trees, its tensors stacked; other values must be the same in every row."""
    first = rows[0]
    if isinstance(first, torch.Tensor):
        # A single row, the usual case, is only looked at as a batch of one: nothing is copied.
        if len(rows) == 1:
            return first.unsqueeze(0)
        together = _as_one(rows)
        return torch.stack(tuple(rows)) if together is None else together
    if isinstance(first, dict):
        return {key: stacked([row[key] for row in rows]) for key in first}
    if isinstance(first, (list, tuple)):
        return [stacked(parts) for parts in zip(*rows, strict=True)]
    return first


def _as_one(rows: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Rows that lie in one memory one behind the other, as staging for a device puts them, as one tensor: no copy.

    None for rows that lie otherwise. A gap between them would do for most of what a module does, but not for view().
    """
    first = rows[0]
    distance = first.numel() * first.element_size()
    if not distance or not first.is_contiguous():
        return None
    start, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    for index, row in enumerate(rows):
        if (
            row.data_ptr() != start + index * distance
            or row.shape != first.shape
            or row.dtype != first.dtype
            or not row.is_contiguous()
            or row.untyped_storage().data_ptr() != storage
        ):
            return None
    return first.as_strided((len(rows), *first.shape), (first.numel(), *first.stride()))


def split(action: Any, count: int) -> list[Any]:
    """The `count` rows of an action, in its memory; raises ValueError for a tensor without a first dimension of that length.

    A device's rows stay there: who replies copies them to the host, and waits for all at once.
    """
    checked = _checked(action, count)
    return [_row(checked, index) for index in range(count)]


def _checked(tree: Any, count: int, name: str = "") -> Any:
    if isinstance(tree, torch.Tensor):
        if tree.dim() == 0 or tree.shape[0] != count:
            raise ValueError(
                f"the module gave {name or 'a tensor'} of shape {list(tree.shape)} for {count} row{'s' * (count > 1)}: "
                f"with batch_dim = true its first dimension must be {count}"
            )
        return tree
    if isinstance(tree, dict):
        return {key: _checked(value, count, f"{name}.{key}" if name else str(key)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_checked(value, count, f"{name}[{index}]") for index, value in enumerate(tree)]
    return tree


def _row(tree: Any, index: int) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree[index]
    if isinstance(tree, dict):
        return {key: _row(value, index) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_row(value, index) for value in tree]
    return tree
