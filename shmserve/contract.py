"""Contract of a model: the entries of its observations and actions as plain dicts, and the differences of two contracts.

>>> import numpy as np
>>> describe_tree({"image": np.zeros((4, 6, 3), np.uint8), "robot": {"joints": [0.0, 0.5]}, "task": "fold"})
{'image': {'dtype': 'uint8', 'shape': [4, 6, 3]}, 'robot.joints': {'type': 'list[float]', 'length': 2}, \
'task': {'type': 'str'}}

A contract is `{"observation": ..., "action": ...}` of two such tables. It describes the observation and the action of
the model's warm-up, and it passes through JSON unchanged. Its `meaning` is the statement of the package
(contract_meaning.py), which also declares dimensions as free: -1 in a shape, or as a length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .contract_meaning import FREE, SIDES, entry_field, meaning_differences, withdrawn

Entry = dict[str, Any]
Entries = dict[str, Entry]

#: A key that needs no quotes: nothing in it that a name of several keys is made of.
_BARE = re.compile(r'[^."\[\]\s]+')
_SCALARS = (bool, int, float, str)


def name_within(name: str, step: str | int) -> str:
    """The name of one entry of the container called `name` ("" for the outermost).

    Keys are joined as in TOML, so that a nested entry and a key with a dot in it have different names.

    >>> name_within(name_within("", "robot"), "joints"), name_within("", "robot.joints"), name_within("poses", 2)
    ('robot.joints', '"robot.joints"', 'poses[2]')
    """
    if isinstance(step, int):
        return f"{name}[{step}]"
    key = step if _BARE.fullmatch(step) else json.dumps(step, ensure_ascii=False)
    return f"{name}.{key}" if name else key


def flatten_with_path(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a tree of dicts, lists and tuples with its name; a list of plain numbers is one value."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from flatten_with_path(value, name_within(name, key))
    elif isinstance(tree, (list, tuple)) and tree and not _of_scalars(tree):
        for index, value in enumerate(tree):
            yield from flatten_with_path(value, name_within(name, index))
    else:
        yield name, tree


def _of_scalars(values: list[Any] | tuple[Any, ...]) -> bool:
    kinds = set(map(type, values))
    return len(kinds) == 1 and kinds.pop() in _SCALARS


def describe_tree(tree: Any) -> Entries:
    """Return the table of a tree: the name of each entry with its dtype and shape, or with its type unless it is an array."""
    return {name: _entry(value) for name, value in flatten_with_path(tree)}


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of an array, a tensor or an array in GPU memory; () for any other value."""
    if (shape := getattr(value, "shape", None)) is None:
        shape = (_interface(value) or {}).get("shape", ())
    return tuple(shape)


def _interface(value: Any) -> dict[str, Any] | None:
    """Return the description that an array in GPU memory may have as its only attribute; None for other values."""
    found = getattr(value, "__cuda_array_interface__", None) if type(value).__module__ != "builtins" else None
    return found if type(found) is dict else None


def _entry(value: Any) -> Entry:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None and (interface := _interface(value)) is not None:
        shape, dtype = shape_of(value), np.dtype(interface["typestr"])
    if shape is not None and dtype is not None:  # an array, a tensor, a numpy scalar
        name = getattr(dtype, "name", None) or str(dtype).removeprefix("torch.")
        return {"dtype": name, "shape": [int(length) for length in shape]}
    if isinstance(value, (list, tuple)) and value:
        return {"type": f"list[{type(value[0]).__name__}]", "length": len(value)}
    kind = type(value)
    if value is None:
        return {"type": "None"}
    return {"type": kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"}


def entry_text(entry: Mapping[str, Any]) -> str:
    """An entry as messages show it.

    >>> entry_text({"dtype": "float32", "shape": [16, 7]}), entry_text({"type": "list[float]", "length": 2})
    ('float32[16, 7]', 'list[float] of 2')
    """
    if "dtype" in entry:
        return f"{entry['dtype']}{entry['shape']}"
    return f"{entry['type']} of {entry['length']}" if "length" in entry else str(entry["type"])


def contract_of(observation: Any, action: Any) -> dict[str, Entries | None]:
    """The contract of a model that answered `observation` with `action`."""
    return {"observation": describe_tree(observation), "action": describe_tree(action)}


def lengths_of(entry: Mapping[str, Any]) -> list[int]:
    """Return the lengths of an array's dimensions, or of a list; empty for other entries."""
    return [entry["length"]] if "length" in entry else list(entry.get("shape", ()))


def is_within(entry: Mapping[str, Any], declared: Mapping[str, Any]) -> bool:
    """Return whether every value that `entry` describes is one that `declared` describes.

    >>> points = {"dtype": "float32", "shape": [-1, 3]}
    >>> is_within({"dtype": "float32", "shape": [500, 3]}, points), is_within(points, {"dtype": "float32", "shape": [500, 3]})
    (True, False)
    """
    if any(entry.get(key) != declared.get(key) for key in ("dtype", "type")):
        return False
    lengths, wanted = lengths_of(entry), lengths_of(declared)
    return len(lengths) == len(wanted) and all(
        want in (FREE, length) for length, want in zip(lengths, wanted, strict=True)
    )


def contract_differences(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[str]:
    """List the differences of `new` from `old`, an entry a line; empty if every user of `old` can use `new`.

    A side that `old` does not know (its model had no example to warm up with) promised nothing, so nothing can
    differ. A side that only `new` does not know is a difference, because its promise may no longer hold; so is a
    field of its meaning that only `new` does not state. A user of `old` sends what `old` takes, so `new` must take that;
    and what `new` gives must be what `old` gave.

    >>> seven = {"action": {"actions": {"dtype": "float32", "shape": [16, 7]}, "value": {"type": "float"}}}
    >>> eight = {"action": {"actions": {"dtype": "float32", "shape": [16, 8]}, "gripper": {"type": "bool"}}}
    >>> contract_differences(seven, eight)
    ['action.actions: float32[16, 7] -> float32[16, 8]', 'action.value: float -> absent', \
'action.gripper: absent -> bool']
    """
    differences = []
    for side in SIDES:
        before, after = ((contract or {}).get(side) for contract in (old, new))
        if before is None:
            continue
        if after is None:
            differences.append(f"{side}: {_names(before)} -> not known (the model has no example to warm up with)")
            continue
        for name in [*before, *(name for name in after if name not in before)]:
            was, now = before.get(name), after.get(name)
            if (
                was is None
                or now is None
                or not (is_within(was, now) if side == "observation" else is_within(now, was))
            ):
                differences.append(f"{entry_field(side, name)}: {_shown(was)} -> {_shown(now)}")
    meanings = [(contract or {}).get("meaning") for contract in (old, new)]
    for field, stated, instead in (*meaning_differences(*meanings), *withdrawn(*meanings)):
        differences.append(f"{field}: {stated!r} -> {'not stated' if instead is None else repr(instead)}")
    return differences


def _shown(entry: Mapping[str, Any] | None) -> str:
    return "absent" if entry is None else entry_text(entry)


def _names(entries: Mapping[str, Any]) -> str:
    return ", ".join(entries) or "nothing"
