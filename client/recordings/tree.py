"""A tree of arrays as JSON that names tensors, and those tensors; and the tree again.

Dicts, lists, strings, integers, floats, truths and null are JSON's own. What JSON has no word for is an object of one
key that begins with a dollar:

>>> value, tensors = to_json({"image": np.zeros((2, 3), np.uint8), "pose": (1.5, None)}, "observation")
>>> value
{'image': {'$array': 'observation.image'}, 'pose': {'$tuple': [1.5, None]}}
>>> sorted(tensors)
['observation.image']
>>> from_json(value, tensors)["pose"]
(1.5, None)
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shmserve.carried_values import BFLOAT16
from shmserve.contract import name_within
from shmserve.tree_reader import LeafPlace, leaf_value

from .errors import RecordingError

Array = npt.NDArray[Any]

#: Dtypes that safetensors has no name for: how their bytes are kept. A complex number is two floats.
_KEPT_AS: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(np.uint16),
    "complex64": np.dtype(np.float32),
    "complex128": np.dtype(np.float64),
}
_LISTS = ("f8", "i8", "b1")
#: A list of at least this many numbers is kept as a tensor.
_LIST_AS_ARRAY = 8


@dataclass(frozen=True)
class Leaf:
    """A leaf of the payload as a slot holds it: its kind and its bytes."""

    kind: str  # as LeafPlace's
    dtype: str
    array: Array


def leaf_as_it_is(place: LeafPlace, payload: npt.NDArray[np.uint8]) -> Any:
    """A leaf of a slot with its kind; text, bytes and short lists as they are."""
    if place.kind in ("str", "bytes") or (place.kind == "list" and place.shape[0] < _LIST_AS_ARRAY):
        return leaf_value(place, payload)
    view = place.view(payload)
    return Leaf(place.kind, "bfloat16" if place.dtype == BFLOAT16 else view.dtype.name, view)


def to_json(tree: Any, name: str) -> tuple[Any, dict[str, Array]]:
    """The JSON value of `tree`, and its tensors by names that begin with `name`."""
    tensors: dict[str, Array] = {}

    def apart(value: Any, path: str) -> Any:
        kind = type(value)
        if kind is dict:
            parts = {key: apart(item, name_within(path, key)) for key, item in value.items()}
            if any(type(key) is not str for key in parts):  # JSON has no integer keys
                return {"$items": [[key, item] for key, item in parts.items()]}
            return {"$dict": parts} if any(key.startswith("$") for key in parts) else parts
        if kind is list:
            return [apart(item, name_within(path, index)) for index, item in enumerate(value)]
        if kind is tuple:
            return {"$tuple": [apart(item, name_within(path, index)) for index, item in enumerate(value)]}
        if kind is float and not math.isfinite(value):
            return {"$float": repr(value)}
        if kind is bytes:
            return {"$bytes": base64.b64encode(value).decode()}
        if kind is np.ndarray or isinstance(value, np.generic):
            value = Leaf("array" if kind is np.ndarray else "scalar", value.dtype.name, np.asarray(value))
        if isinstance(value, Leaf):
            tensors[path] = _kept(value)
            return {f"${value.kind}": path, **({"dtype": value.dtype} if value.dtype in _KEPT_AS else {})}
        return value

    return apart(tree, name), tensors


def _kept(leaf: Leaf) -> Array:
    array = leaf.array
    if leaf.dtype in ("complex64", "complex128"):
        kept: Array = np.ascontiguousarray(array).view(_KEPT_AS[leaf.dtype])
        return kept.reshape(*array.shape, 2)
    return np.asarray(array.view(np.uint16) if leaf.dtype == "bfloat16" else array, order="C")


def from_json(value: Any, tensors: Mapping[str, Array]) -> Any:
    """The tree of a JSON value and its tensors; raises RecordingError for what `to_json` never makes."""
    kind = type(value)
    if kind is list:
        return [from_json(item, tensors) for item in value]
    if kind is not dict:
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: from_json(item, tensors) for key, item in value.items()}
    content, dtype = value[tag], value.get("dtype")
    if value.keys() - {tag, "dtype"} or tag not in _READERS:
        raise RecordingError(f"no such value: {_shown(value)}")
    try:
        return _READERS[tag](content, dtype, tensors)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(f"no such value: {_shown(value)} ({type(error).__name__}: {error})") from error


def _array(content: Any, dtype: str | None, tensors: Mapping[str, Array]) -> Array:
    array = tensors[content]
    if dtype is None:
        return array
    if array.dtype != _KEPT_AS[dtype]:
        raise ValueError(f"{dtype} kept as {array.dtype}")
    if dtype != "bfloat16":
        if array.ndim == 0 or array.shape[-1] != 2:
            raise ValueError(f"{dtype} of shape {array.shape}")
        return np.ascontiguousarray(array).view(np.dtype(dtype)).reshape(array.shape[:-1])
    ml_dtypes: Any = sys.modules.get("ml_dtypes")
    # As a client without ml_dtypes gets it: float32 of the same values.
    if ml_dtypes is not None:
        return array.view(np.dtype(ml_dtypes.bfloat16))
    return (array.astype(np.uint32) << 16).view(np.float32)


def _list(content: Any, dtype: str | None, tensors: Mapping[str, Array]) -> Any:
    array = tensors[content]
    if array.ndim != 1 or array.dtype.str[1:] not in _LISTS:
        raise ValueError(f"a list of {array.dtype}{list(array.shape)}")
    return array.tolist()


def _float(content: Any, dtype: str | None, tensors: Mapping[str, Array]) -> float:
    found = float(content)
    if math.isfinite(found):
        raise ValueError("a finite number is JSON's own")
    return found


def _dict(content: Any, dtype: str | None, tensors: Mapping[str, Array]) -> dict[str, Any]:
    if type(content) is not dict:
        raise TypeError("a dict is an object of JSON")
    return {key: from_json(item, tensors) for key, item in content.items()}


def _items(content: Any, dtype: str | None, tensors: Mapping[str, Array]) -> dict[Any, Any]:
    if type(content) is not list or not all(type(item) is list and len(item) == 2 for item in content):
        raise TypeError("items are an array of [key, value]")
    if not all(type(key) in (str, int) for key, _ in content):
        raise TypeError("a key is a text or an integer")
    return {key: from_json(item, tensors) for key, item in content}


def _tuple(content: Any, dtype: str | None, tensors: Mapping[str, Array]) -> tuple[Any, ...]:
    if type(content) is not list:
        raise TypeError("a tuple is an array of JSON")
    return tuple(from_json(item, tensors) for item in content)


_READERS: dict[str, Callable[[Any, str | None, Mapping[str, Array]], Any]] = {
    "$array": _array,
    "$scalar": lambda content, dtype, tensors: _array(content, dtype, tensors)[()],
    "$list": _list,
    "$bytes": lambda content, dtype, tensors: base64.b64decode(content, validate=True),
    "$float": _float,
    "$dict": _dict,
    "$items": _items,
    "$tuple": _tuple,
}


def _shown(value: Any) -> str:
    return f"{value!r:.100}"
