"""Aggregation of two chunks: how the rows of both for one time step combine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np

from shmserve.errors import InvalidArgument, InvalidChunk

from .chunk_rows import Chunk, leaves_of, map_leaves, structure_of

#: One row of the old and of the new chunk (arrays of one shape and dtype) to the row to execute.
RowFunction: TypeAlias = Callable[[Any, Any], Any]
Aggregate: TypeAlias = Literal["latest", "weighted_average"] | RowFunction
_NAMES = ("latest", "weighted_average")
#: Weights of "weighted_average", as LeRobot's default aggregate function has them.
OLD_WEIGHT, NEW_WEIGHT = 0.3, 0.7


def checked_aggregate(aggregate: Any) -> Aggregate:
    """Return the argument, or raise InvalidArgument."""
    if callable(aggregate) or (isinstance(aggregate, str) and aggregate in _NAMES):
        return aggregate  # type: ignore[no-any-return]
    raise InvalidArgument(
        f"aggregate must be one of {', '.join(_NAMES)}, or a function of an old and a new row, not {aggregate!r}"
    )


def aggregate_chunks(aggregate: Aggregate, old: Chunk, old_index: int, new: Chunk, index: int) -> None:
    """Combine, into `new`, the rows of both chunks from now on: row `old_index` of `old` is for the time of row `index` of `new`.

    Chunks of different structures are not combined. Raises InvalidChunk for what an own function returned, and whatever
    it raises; `new` is unchanged then.
    """
    count = min(old.total - old_index, new.total - index)
    if aggregate == "latest" or count < 1 or structure_of(old.rows) != structure_of(new.rows):
        return
    before = iter(leaves_of(old.rows))

    def combined(rows: Any) -> Any:
        found = np.array(rows)
        found[index : index + count] = _combined(
            aggregate, next(before)[old_index : old_index + count], rows[index : index + count]
        )
        return found

    new.rows = map_leaves(new.rows, combined)


def _combined(aggregate: Aggregate, old: Any, new: Any) -> Any:
    if callable(aggregate):
        return [_row(aggregate, np.array(before), np.array(after)) for before, after in zip(old, new, strict=True)]
    # A number of a discrete action has no mean.
    return OLD_WEIGHT * old + NEW_WEIGHT * new if _is_float(new.dtype) else new


def _row(function: RowFunction, old: Any, new: Any) -> Any:
    """Call an own function for one row of one array."""
    shape, dtype = new.shape, new.dtype
    given = function(old, new)
    try:
        row = np.asarray(given)
        fits = row.shape == shape and np.can_cast(row.dtype, dtype, "same_kind")
    except (TypeError, ValueError):
        fits = False
    if not fits:
        kind = f"{given.dtype}{list(given.shape)}" if isinstance(given, np.ndarray) else f"{given!r:.40}"
        raise InvalidChunk(
            f"aggregate returned {kind} for a row of {dtype}{list(shape)}: it must return an array like its arguments"
        )
    row = row.astype(dtype)
    if _is_float(dtype) and not np.isfinite(row).all():
        raise InvalidChunk(f"aggregate returned numbers that are not finite: {row.tolist()!r:.80}")
    return row


def _is_float(dtype: Any) -> bool:
    return "float" in dtype.name  # numpy has no kind for bfloat16
