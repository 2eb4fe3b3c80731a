"""Observation of zeros that fits a model, made from the model's description of what it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from shmserve.contract_meaning import FREE

_STEP = re.compile(r'\.?(?:(?P<quoted>"(?:[^"\\]|\\.)*")|\[(?P<index>\d+)\]|(?P<bare>[^."\[\]\s]+))')
_VALUES: dict[str, Any] = {"str": "", "bytes": b"", "int": 0, "float": 0.0, "bool": False, "None": None}
#: The remedy wherever an observation cannot be made.
REMEDY = "pass --example FILE.npz, or --shape NAME:480x640x3:uint8 for each array"


class NotKnown(ValueError):
    """The description is not sufficient to make an observation; the message has the remedy."""


def synthetic_observation(entries: Mapping[str, Mapping[str, Any]] | None) -> Any:
    """The tree that `describe_tree` describes with these entries; a free dimension has the example's length.

    >>> synthetic_observation({"robot.joints": {"type": "list[float]", "length": 2}, "poses[1]": {"type": "int"},
    ...                      "poses[0]": {"dtype": "uint8", "shape": [2]}, '"a.b"': {"type": "str"}})
    {'robot': {'joints': [0.0, 0.0]}, 'poses': [array([0, 0], dtype=uint8), 0], 'a.b': ''}
    """
    if entries is None:
        raise NotKnown(f"the model was not warmed up with an example, and no request has been served yet: {REMEDY}")
    root: dict[str | int, Any] = {}
    for name, entry in entries.items():
        path: list[str | int] = ["", *steps(name)]
        node = root
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = _zero(name, entry)
    return _as_lists(root.get("", {}))


def steps(name: str) -> list[str | int]:
    """Return the keys and indices of an entry's name in a contract; raises ValueError for what is not a name.

    >>> steps('arm."a.b"[2]'), steps("camera/front")
    (['arm', 'a.b', 2], ['camera/front'])
    """
    found: list[str | int] = []
    at = 0
    while at < len(name):
        match = _STEP.match(name, at)
        if match is None or (name[at] == "." and not at):
            raise ValueError(
                f"{name!r} is not the name of an entry: keys are joined by dots, and one with a dot is quoted"
            )
        if match["index"] is not None:
            found.append(int(match["index"]))
        else:
            found.append(json.loads(match["quoted"]) if match["quoted"] else match["bare"])
        at = match.end()
    return found


def _zero(name: str, entry: Mapping[str, Any]) -> Any:
    if "dtype" in entry:
        shape = entry["shape"] if FREE not in entry["shape"] else entry["example_shape"]
        try:
            return np.zeros(shape, entry["dtype"])
        except TypeError:
            raise NotKnown(f"{name} is of dtype {entry['dtype']}, which numpy does not have: {REMEDY}") from None
    kind = entry["type"]
    item = kind.removeprefix("list[").removesuffix("]")
    if kind.startswith("list[") and item in _VALUES:
        length = entry["length"] if entry["length"] != FREE else entry["example_length"]
        return [_VALUES[item]] * int(length)
    if kind in ("dict", "list", "tuple"):
        return {} if kind == "dict" else []
    if kind not in _VALUES:
        raise NotKnown(f"{name or 'the observation'} is a {kind}, which cannot be synthesized: {REMEDY}")
    return _VALUES[kind]


def _as_lists(node: Any) -> Any:
    """Turn containers with integer keys into lists."""
    if not isinstance(node, dict):
        return node
    if node and all(isinstance(step, int) for step in node):
        return [_as_lists(node[index]) for index in sorted(node)]
    return {step: _as_lists(value) for step, value in node.items()}
