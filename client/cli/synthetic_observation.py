"""Observation of zeros that fits a model, made from the model's contract."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_STEP = re.compile(r'\.?(?:(?P<quoted>"(?:[^"\\]|\\.)*")|\[(?P<index>\d+)\]|(?P<bare>[^."\[\]\s]+))')
_VALUES: dict[str, Any] = {"str": "", "bytes": b"", "int": 0, "float": 0.0, "bool": False, "None": None}


class NotKnown(ValueError):
    """The contract is not sufficient to make an observation; the message has the remedy."""


def synthetic_observation(entries: Mapping[str, Mapping[str, Any]] | None) -> Any:
    """The tree that `describe_tree` describes with these entries.

    >>> synthetic_observation({"robot.joints": {"type": "list[float]", "length": 2}, "poses[1]": {"type": "int"},
    ...                      "poses[0]": {"dtype": "uint8", "shape": [2]}, '"a.b"': {"type": "str"}})
    {'robot': {'joints': [0.0, 0.0]}, 'poses': [array([0, 0], dtype=uint8), 0], 'a.b': ''}
    """
    if entries is None:
        raise NotKnown("the model was not warmed up with an example and so has no contract: pass --example FILE.npz")
    root: dict[str | int, Any] = {}
    for name, entry in entries.items():
        path: list[str | int] = ["", *_steps(name)]
        node = root
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = _zero(name, entry)
    return _as_lists(root.get("", {}))


def _steps(name: str) -> list[str | int]:
    steps: list[str | int] = []
    for match in _STEP.finditer(name):
        if match["index"] is not None:
            steps.append(int(match["index"]))
        else:
            steps.append(json.loads(match["quoted"]) if match["quoted"] else match["bare"])
    return steps


def _zero(name: str, entry: Mapping[str, Any]) -> Any:
    if "dtype" in entry:
        try:
            return np.zeros(entry["shape"], entry["dtype"])
        except TypeError:
            raise NotKnown(
                f"{name} is of dtype {entry['dtype']}, which numpy does not have: pass --example FILE.npz"
            ) from None
    kind = entry["type"]
    item = kind.removeprefix("list[").removesuffix("]")
    if kind.startswith("list[") and item in _VALUES:
        return [_VALUES[item]] * int(entry["length"])
    if kind in ("dict", "list", "tuple"):
        return {} if kind == "dict" else []
    if kind not in _VALUES:
        raise NotKnown(f"{name or 'the observation'} is a {kind}, which cannot be synthesized: pass --example FILE.npz")
    return _VALUES[kind]


def _as_lists(node: Any) -> Any:
    """Turn containers with integer keys into lists."""
    if not isinstance(node, dict):
        return node
    if node and all(isinstance(step, int) for step in node):
        return [_as_lists(node[index]) for index in sorted(node)]
    return {step: _as_lists(value) for step, value in node.items()}
