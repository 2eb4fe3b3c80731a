"""Batching along a first dimension: stacks the arguments of several requests for one call, and splits its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def stacked(rows: Sequence[Any]) -> Any:
    """Stack the tensors of the rows' trees into one tree; all other values must be the same in every row."""
    first = rows[0]
    if isinstance(first, torch.Tensor):
        # A single row, the usual case, becomes a view as a batch of one, without a copy.
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
    """Return one tensor over rows that are contiguous in memory, as staging for a device places them, without a copy.

    Return None for other rows. With gaps between the rows most operations would still work, but view() would not.
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
    """Return the `count` rows of an action as views; raises ValueError for a tensor whose first dimension has another length.

    Rows on a device stay there: the readback copies them to the host, and the engine waits once for all of them.
    """
    checked = _checked(action, count)
    return [_row(checked, index) for index in range(count)]


def _checked(tree: Any, count: int, name: str = "") -> Any:
    if isinstance(tree, torch.Tensor):
        if tree.dim() == 0 or tree.shape[0] != count:
            raise ValueError(
                f"the module returned {name or 'a tensor'} of shape {list(tree.shape)} for {count} row{'s' * (count > 1)}: "
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
