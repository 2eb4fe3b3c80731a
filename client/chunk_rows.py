"""Rows of one action chunk: where they are in a model's result, and which row a moment asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shmserve.errors import InvalidChunk


@dataclass
class Chunk:
    """One result of the model, as far as it may be executed."""

    rows: Any
    total: int  # all of its rows
    count: int  # of these, the ones that may be executed
    version: str
    number: int
    capture_ns: int
    tick: int  # the step whose observation it answers
    used: int = -1  # the last row that was executed
    #: Whether each step since its first row had an action of it; its rows after a gap were not executed.
    is_continuous: bool = True


def row_due(elapsed_ns: int, period_ns: int) -> int:
    """Return the row meant for `elapsed_ns` after its observation: the nearest, so that jitter is harmless.

    >>> [row_due(elapsed_ns, 20) for elapsed_ns in (-3, 0, 9, 10, 29, 30, 400)]
    [0, 0, 0, 1, 1, 2, 20]
    """
    return max(0, (2 * elapsed_ns + period_ns) // (2 * period_ns))


def find_rows(result: Any, actions: str | Callable[[Any], Any], steps: int) -> tuple[Any, int]:
    """Return the chunk in a model's result and its number of rows, at least `steps`; raises InvalidChunk."""
    if callable(actions):
        chunk = actions(result)
    elif isinstance(result, dict) and actions in result:
        chunk = result[actions]
    else:
        found = ", ".join(map(str, result)) if isinstance(result, dict) else f"a {type(result).__name__}"
        raise InvalidChunk(
            f"the model's result has no {actions!r} but {found}: pass the key of its chunk, or a function, as actions="
        )
    counts = set()
    for leaf in leaves_of(chunk):
        if not isinstance(leaf, np.ndarray) or not leaf.ndim:
            raise InvalidChunk(
                f"a chunk consists of arrays with the rows first, not of {type(leaf).__name__} ({leaf!r:.40})"
            )
        counts.add(leaf.shape[0])
    if len(counts) != 1 or min(counts) < steps:
        raise InvalidChunk(
            f"every array of a chunk needs steps = {steps} rows or more, and all the same number; this one has "
            f"{sorted(counts)} rows"
        )
    return chunk, counts.pop()


def map_leaves(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Return a tree of the same structure with `function` applied to each leaf."""
    if isinstance(tree, dict):
        return {key: map_leaves(inner, function) for key, inner in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_leaves(inner, function) for inner in tree)
    return function(tree)


def leaves_of(tree: Any) -> list[Any]:
    """Return the leaves of a tree, in the order in which `map_leaves` visits them."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [leaf for inner in tree for leaf in leaves_of(inner)]
    return [tree]


def structure_of(tree: Any) -> Any:
    """Return the containers of a chunk, with dtype and shape of a row for each array; equal for chunks of one structure."""
    if isinstance(tree, dict):
        return [(key, structure_of(inner)) for key, inner in tree.items()]
    if isinstance(tree, (list, tuple)):
        return [structure_of(inner) for inner in tree]
    return tree.dtype, tree.shape[1:]
