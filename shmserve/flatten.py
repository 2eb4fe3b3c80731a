"""Flattening of a tree: its metadata, and its sizes, numbers and leaves, by one walk in Python.

The native core walks by itself (native/python/tree_encoder.c) and this walk says why a tree cannot be carried. The pure
backend walks here.

>>> import numpy as np
>>> flat = flatten({"points": np.zeros((5, 3), np.float32), "task": "fold", "step": 7}, "observation")
>>> flat.sizes, flat.numbers, [(array.dtype.str, array.shape) for array in flat.arrays]
([5, 3, 4], [7], [('<f4', (5, 3)), ('|u1', (4,))])
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .base_values import circle_error, error_text, is_tensor, refusal, shown, spelled, type_name
from .carried_values import AS_BASE, AS_BFLOAT16, AS_LONG, BFLOAT16, ON_DEVICE, Convert, NotCarried, carried
from .errors import DeviceArrayRefused, RequestRejected, UnsupportedType
from .metadata import BEGIN, END, NONE, PROTO, STOP, int64, key_bytes, key_fault, leaf_bytes, long_bytes
from .metadata_leaf import DEPTH_LIMIT, DEVICE, DIMENSION_LIMIT, DTYPES, METADATA_LIMIT, NODE_LIMIT, Leaf

Array = npt.NDArray[Any]

_WIRE_NAMES: Final = {np.dtype(name): name for name in DTYPES if name != BFLOAT16}
_INT: Final = leaf_bytes(Leaf("int", "<i8", 0))
_FLOAT: Final = leaf_bytes(Leaf("float", "<f8", 0))
_BOOL: Final = leaf_bytes(Leaf("bool", "<i8", 0))
_STR: Final = leaf_bytes(Leaf("str", "|u1", 1))
_BYTES: Final = leaf_bytes(Leaf("bytes", "|u1", 1))
#: Type of a list's numbers -> the operations of its leaf, and numpy's dtype.
_LISTS: Final[dict[type, tuple[bytes, Any]]] = {
    float: (leaf_bytes(Leaf("list", "<f8", 1)), np.float64),
    int: (leaf_bytes(Leaf("list", "<i8", 1)), np.int64),
    bool: (leaf_bytes(Leaf("list", "|b1", 1)), np.bool_),
}
_PLAIN_KEYS: Final = frozenset({str, int})


class FlatTree:
    """A described and flattened tree."""

    __slots__ = ("arrays", "metadata", "numbers", "sizes")

    def __init__(self, metadata: bytes, sizes: list[int], numbers: list[Any], arrays: list[Array | None]) -> None:
        self.metadata = metadata
        #: The length of each dimension.
        self.sizes = sizes
        self.numbers = numbers
        #: The leaves that have a place; texts, bytes and lists as arrays, bfloat16 as uint16, None in GPU memory.
        self.arrays = arrays


def flatten(tree: Any, name: str, convert: Convert = carried) -> FlatTree:
    """Walk a tree that errors call `name`; `convert` gives the form of values of other types.

    Raises UnsupportedType naming the place and the type of a value that cannot be carried, RequestRejected for a tree
    that is too deep, too large or has too many values, and what a device raises.
    """
    walk = _Walk(name, convert)
    try:
        walk.value(tree, None, 0)
    except RecursionError:  # the caller was deep in its own calls
        raise RequestRejected(f"{name} is nested too deep for the calls around it") from None
    metadata = b"".join((PROTO, *walk.parts, STOP))
    if len(metadata) > METADATA_LIMIT:
        raise RequestRejected(
            f"{name}: its keys and leaves take {len(metadata)} bytes of metadata, the limit is {METADATA_LIMIT}"
        )
    return FlatTree(metadata, walk.sizes, walk.numbers, walk.arrays)


class _Walk:
    def __init__(self, name: str, convert: Convert) -> None:
        self._name = name
        self._convert = convert
        self._open: set[int] = set()
        self._nodes = 0
        self.parts: list[bytes] = []
        self.sizes: list[int] = []
        self.numbers: list[Any] = []
        self.arrays: list[Array | None] = []

    def value(self, given: Any, place: Any, depth: int) -> None:
        self._nodes += 1
        if self._nodes > NODE_LIMIT:
            where = spelled(place, self._name)
            raise RequestRejected(
                f"{where:.400}: makes it more than {NODE_LIMIT} entries; send long lists as one array"
            )
        if depth > DEPTH_LIMIT:
            raise UnsupportedType(
                f"{spelled(place, self._name):.400}: a {type(given).__name__} within more than {DEPTH_LIMIT} containers"
            )
        if self._plain(given, place, depth):
            return
        try:
            code, base = self._convert(given)
        except DeviceArrayRefused as error:
            raise DeviceArrayRefused(f"{spelled(place, self._name)}: {error}", reason=error.reason) from None
        except NotCarried as error:
            raise UnsupportedType(f"{spelled(place, self._name)}: {error}") from None
        except RecursionError:
            raise
        except Exception as error:
            if is_tensor(given) and isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
                raise  # the device's, which is not the tree's fault
            raise refusal(spelled(place, self._name), given, error) from error
        if code == AS_BASE:
            if type(base) is dict and id(given) in self._open:
                raise circle_error(spelled(place, self._name), given)
            if not self._plain(base, place, depth, given):
                raise self._unsupported(base, place)
        elif code == AS_LONG:
            written = long_bytes(int.from_bytes(base, "little", signed=True))
            if written is None:
                raise RequestRejected(f"{spelled(place, self._name)}: an int of {8 * len(base)} bits is too long")
            self.parts.append(written)
        elif code == ON_DEVICE:
            dtype, shape = base
            self._leaf(DEVICE, dtype, shape, None, place)
        else:
            self._array("array" if code == AS_BFLOAT16 else "scalar", BFLOAT16, base, place)

    def _plain(self, value: Any, place: Any, depth: int, given: Any = None) -> bool:
        """Carry a value of an exact base type or an array; return False for any other. `given` was converted to it."""
        kind = type(value)
        if kind is np.ndarray:
            wire = _WIRE_NAMES.get(value.dtype)
            if wire is None or not value.dtype.isnative:
                return False
            self._array("array", wire, value, place)
        elif kind is float:
            self._number(_FLOAT, value)
        elif kind is int:
            if value not in int64:
                return False
            self._number(_INT, value)
        elif kind is bool:
            self._number(_BOOL, value)
        elif kind is str:
            self._bytes(_STR, str.encode(value, "utf-8", "surrogatepass"))
        elif kind is bytes:
            self._bytes(_BYTES, value)
        elif value is None:
            self.parts.append(NONE)
        elif kind is dict:
            return self._dict(value, place, depth, given)
        elif kind is list:
            if not self._list_of_numbers(value):
                self._container(value, enumerate(list(value)), place, depth, given)
        elif kind is tuple:
            self._container(value, enumerate(value), place, depth, given)
        elif isinstance(value, np.generic) and (wire := _WIRE_NAMES.get(value.dtype)) is not None:
            self._array("scalar", wire, np.asarray(value), place)
        else:
            return False
        return True

    def _number(self, leaf: bytes, value: Any) -> None:
        self.parts.append(leaf)
        self.numbers.append(value)

    def _bytes(self, leaf: bytes, data: bytes) -> None:
        self.parts.append(leaf)
        self.sizes.append(len(data))
        self.arrays.append(np.frombuffer(data, np.uint8))

    def _array(self, kind: str, dtype: str, array: Array, place: Any) -> None:
        self._leaf(kind, dtype, array.shape, array, place)

    def _leaf(self, kind: str, dtype: str, shape: tuple[int, ...], array: Array | None, place: Any) -> None:
        if len(shape) > DIMENSION_LIMIT:
            where = spelled(place, self._name)
            raise UnsupportedType(f"{where}: an array of {len(shape)} dimensions, the limit is {DIMENSION_LIMIT}")
        self.parts.append(leaf_bytes(Leaf(kind, dtype, len(shape))))
        self.sizes += shape
        self.arrays.append(array)

    def _list_of_numbers(self, values: list[Any]) -> bool:
        if not values:
            return False
        kind = type(values[0])
        if kind is not float and kind is not int and kind is not bool:
            return False
        found = _LISTS[kind]
        values = list(values)  # another thread may change the list
        if _types(values) != {kind} or (kind is int and not (min(values) in int64 and max(values) in int64)):
            return False
        self.parts.append(found[0])
        self.sizes.append(len(values))
        self.arrays.append(np.array(values, found[1]))
        return True

    def _dict(self, value: dict[Any, Any], place: Any, depth: int, given: Any) -> bool:
        entries = list(value.items())
        if not _types(key for key, _ in entries) <= _PLAIN_KEYS:
            if given is None:
                return False  # its keys may be carried as others
            key = next(key for key in value if type(key) is not str and type(key) is not int)
            raise UnsupportedType(
                f"{spelled(place, self._name)}: key {shown(key)} is {type_name(key)}; the keys of a dict must be str or int"
            )
        self._container(value, entries, place, depth, given)
        return True

    def _container(self, value: Any, entries: Any, place: Any, depth: int, given: Any) -> None:
        held = value if given is None else given
        if id(held) in self._open:
            raise circle_error(spelled(place, self._name), held)
        if len(value) > NODE_LIMIT:  # before the whole of it is walked
            raise RequestRejected(
                f"{spelled(place, self._name):.400}: makes it more than {NODE_LIMIT} entries; send long lists as one array"
            )
        self._open.add(id(held))
        kind = type(value)
        self.parts.append(BEGIN[kind])
        for key, entry in entries:
            if kind is dict:
                if fault := key_fault(key):
                    raise UnsupportedType(f"{spelled(place, self._name)}: {fault}")
                self.parts.append(key_bytes(key))
            self.value(entry, (place, key), depth + 1)
        self.parts.append(END[kind])
        self._open.discard(id(held))

    def _unsupported(self, value: Any, place: Any) -> UnsupportedType:
        return UnsupportedType(
            f"{spelled(place, self._name)}: an object of type {type_name(value)} cannot be carried; supported are dict, "
            "list, tuple, str, bytes, int, float, bool, None, numpy arrays and tensors (any Python object only between a "
            "client and a daemon of the same user, or one in the daemon's trusted_uids)"
        )


def _types(values: Iterable[Any]) -> set[type]:
    """Return the types of these values; only `object` if one of the types cannot be hashed."""
    try:
        return set(map(type, values))
    except TypeError:
        return {object}


def changed_error(name: str, error: BaseException | None) -> RequestRejected:
    """Return the error for a tree that could not be written, although a later walk finds nothing wrong with it."""
    if error is not None:
        return UnsupportedType(f"{name}: a value cannot be carried ({error_text(error)})")
    return RequestRejected(f"{name} changed while it was read; do not write to it from another thread")
