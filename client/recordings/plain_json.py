"""Values of observations and actions as plain JSON, for programs that do not know shmserve, with a JSON schema."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

#: A longer array is written as its bytes: no program plots that many numbers, and as digits they are five times as long.
MOST_NUMBERS = 1024
Schema = dict[str, Any]


def plain_json(value: Any) -> Any:
    """Return the value as JSON: lists of numbers for arrays, null for NaN and infinity, base64 for bytes.

    >>> plain_json({"joints": np.float32([0.5, np.nan]), "pose": (1, None), 7: b"ab"})
    {'joints': [0.5, None], 'pose': [1, None], '7': 'YWI='}
    """
    kind = type(value)
    if kind is dict:
        return {str(key): plain_json(item) for key, item in value.items()}
    if kind in (list, tuple):
        return [plain_json(item) for item in value]
    if kind is bytes:
        return base64.b64encode(value).decode()
    if isinstance(value, (np.ndarray, np.generic)):
        return _array(np.asarray(value))
    if kind is float and not math.isfinite(value):
        return None
    return value


def _array(array: Any) -> Any:
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf" or array.size > MOST_NUMBERS:
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        data = base64.b64encode(little.tobytes()).decode()
        return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _with_nulls(array.tolist())
    return array.tolist()


def _with_nulls(numbers: Any) -> Any:
    if isinstance(numbers, list):
        return [_with_nulls(number) for number in numbers]
    return numbers if math.isfinite(numbers) else None


def schema_of(value: Any) -> Schema:
    """Return the JSON schema of a value of `plain_json`, which values of the same structure have as well.

    >>> schema_of({"joints": [0.5, None], "task": "fold"})
    {'type': 'object', 'properties': {'joints': {'type': 'array', 'items': {'type': 'number'}}, 'task': {'type': 'string'}}}
    """
    if isinstance(value, dict):
        return {"type": "object", "properties": {key: schema_of(item) for key, item in value.items()}}
    if isinstance(value, list):
        items = [schema_of(item) for item in value if item is not None]
        return (
            {"type": "array", "items": items[0]}
            if items and all(item == items[0] for item in items)
            else {"type": "array"}
        )
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer"}
    if isinstance(value, float):
        return {"type": "number"}
    return {"type": "string"} if isinstance(value, str) else {}
