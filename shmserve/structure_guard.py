"""Structure guard: the check that a tree has a known structure, and the inference of the schema of a new one.

`infer_schema` walks a tree once and makes its schema and its guard, as a tracing compiler does. A `StructureGuard` checks
later trees and flattens them into leaves, in the order of the schema's layout (schema.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .base_values import Convert, as_base, circle_error, is_tensor, refusal, shown, type_name
from .errors import RequestRejected, UnsupportedType
from .metadata import DEPTH_LIMIT, DTYPES, OPERATION_LIMIT, Leaf, MetadataError, dump
from .schema import BFLOAT16, Array, Schema

#: A longer string is carried as payload bytes, so that it does not fill the metadata.
_INLINE_TEXT = 256
#: Bytes are data (a compressed image); only short ones are part of the structure.
_INLINE_BYTES = 32
#: A list of at least this many numbers of one type is carried as one array.
_LIST_AS_ARRAY = 8
_INT64 = range(-(1 << 63), 1 << 63)
NO_VALUES = "a tensor of the meta device has no values to carry; make it on a device that has memory"


def _tensor_dtype(tensor: Any) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "bfloat16":
        return BFLOAT16
    try:
        wire: str = np.dtype(name).str
    except TypeError:
        wire = ""
    return wire


def tensor_bytes(tensor: Any) -> Array:
    """A tensor as a numpy array on the host, without a copy where it is there already."""
    try:
        return tensor.numpy()  # type: ignore[no-any-return]
    except (RuntimeError, TypeError):  # on a device, wanted for a gradient, or conjugated
        if tensor.is_meta:
            raise UnsupportedType(NO_VALUES) from None
        return tensor.detach().cpu().resolve_conj().resolve_neg().numpy()  # type: ignore[no-any-return]


def _bfloat16_tensor(tensor: Any) -> Array:
    """A bfloat16 tensor's bytes as uint16."""
    # Not torch.uint16: numpy() of it is newer than some Jetson builds of torch.
    return tensor_bytes(tensor.detach().view(sys.modules["torch"].int16)).view(np.uint16)


def _text_bytes(text: str) -> Array:
    return np.frombuffer(str.encode(text, "utf-8", "surrogatepass"), np.uint8)


def _raw_bytes(data: bytes) -> Array:
    return np.frombuffer(data, np.uint8)


def _floats(values: list[float]) -> Array:
    return np.array(values if set(map(type, values)) == {float} else (), np.float64)


def _integers(values: list[int]) -> Array:
    return np.array(values if set(map(type, values)) == {int} else (), np.int64)


def _truths(values: list[bool]) -> Array:
    return np.array(values if set(map(type, values)) == {bool} else (), np.bool_)


def _list_as_array(values: list[Any]) -> tuple[str, Callable[[Any], Array]] | None:
    """The dtype and conversion of a long list of numbers of one type; None for any other list."""
    if len(values) < _LIST_AS_ARRAY:
        return None
    types = set(map(type, values))
    if types == {float}:
        return "<f8", _floats
    if types == {bool}:
        return "|b1", _truths
    if types == {int} and min(values) in _INT64 and max(values) in _INT64:
        return "<i8", _integers
    return None


def _both(first: Convert | None, then: Convert | None) -> Convert | None:
    """One conversion of two."""
    if first is None or then is None:
        return first or then
    return lambda value: then(first(value))


def _native(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("="))


def _uint16(array: Array) -> Array:
    return array.view(np.uint16)


def _array_leaf(value: Any, path: str) -> tuple[Leaf, Callable[[Any], Array] | None]:
    """How an array, a tensor or a numpy scalar travels; the callable converts it where numpy alone would not."""
    if is_tensor(value):
        if _tensor_dtype(value) not in DTYPES:
            raise UnsupportedType(f"{path}: a tensor of {value.dtype} cannot be carried; use one of {_dtype_names()}")
        if value.layout is not sys.modules["torch"].strided:
            raise UnsupportedType(f"{path}: a tensor of layout {value.layout} cannot be carried; use to_dense()")
        if value.is_meta:
            raise UnsupportedType(f"{path}: {NO_VALUES}")
        dtype = _tensor_dtype(value)
        return Leaf("array", dtype, tuple(value.shape)), _bfloat16_tensor if dtype == BFLOAT16 else tensor_bytes
    kind = "array" if type(value) is np.ndarray else "scalar"
    dtype = value.dtype
    if dtype.name == "bfloat16":
        return Leaf(kind, BFLOAT16, value.shape), _uint16
    native = dtype.newbyteorder("=")
    if native.str not in DTYPES or dtype.kind in "VOSUmM":
        raise UnsupportedType(f"{path}: an array of dtype {dtype} cannot be carried; use one of {_dtype_names()}")
    return Leaf(kind, native.str, value.shape), None if dtype.isnative else _native


def _dtype_names() -> str:
    return ", ".join("bfloat16" if name == BFLOAT16 else np.dtype(name).name for name in DTYPES)


class ContainerGuard:
    """Guard of one container, as its base type: the types, constants, dtypes and shapes to compare with."""

    __slots__ = ("arrays", "constants", "keys", "kind", "nested", "numbers", "types", "wrapped")

    def __init__(self, kind: type, keys: tuple[str, ...] | None, types: tuple[type, ...]) -> None:
        self.kind = kind
        self.keys = keys
        self.types = types
        #: Whether this is a tuple around a tree that is a leaf, or a subclass of a container.
        self.wrapped = False
        self.numbers: list[int] = []
        # (position, value as its base type, the conversion to that or None)
        self.constants: list[tuple[int, Any, Convert | None]] = []
        # (position, dtype or None for what has none, shape as numpy will see it, conversion or None)
        self.arrays: list[tuple[int, Any, tuple[int, ...], Callable[[Any], Array] | None]] = []
        # (position, the container there as its base type, the conversion to that or None)
        self.nested: list[tuple[int, ContainerGuard, Convert | None]] = []

    def spec(self) -> tuple[Any, ...]:
        """Return the same as tuples, for the native core."""
        nested = tuple((position, guard.spec(), convert) for position, guard, convert in self.nested)
        constants, numbers, arrays = tuple(self.constants), tuple(self.numbers), tuple(self.arrays)
        return self.kind, self.keys, self.types, constants, numbers, arrays, nested


class _SchemaInference:
    """Walks a tree once, in the order of `Schema`, and makes its guard and its leaves."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: set[int] = set()
        self._entries = 0

    def infer(self, tree: Any) -> tuple[ContainerGuard, Any]:
        """The guard of a tuple with the tree in it, and the tree's leaves."""
        wrapped = ContainerGuard(tuple, None, (type(tree),))
        return wrapped, self.value(wrapped, 0, tree, self._name)

    def container(self, tree: Any, given: Any, path: str) -> tuple[ContainerGuard, Any]:
        """`tree` is the container `given` as its base type."""
        if id(given) in self._open:
            raise circle_error(path, given)
        if len(self._open) > DEPTH_LIMIT:
            raise UnsupportedType(f"{path}: a {type(given).__name__} within more than {DEPTH_LIMIT} containers")
        self._entries += len(tree)
        if self._entries > OPERATION_LIMIT:  # before the whole of it is walked: it may be met again and again
            raise RequestRejected(f"{path}: makes it more than {OPERATION_LIMIT} entries; send long lists as one array")
        self._open.add(id(given))
        keys: tuple[str, ...] | None = None
        if type(tree) is dict:
            keys = tuple(tree)
            for key in keys:
                if type(key) is not str:
                    raise UnsupportedType(
                        f"{path}: key {shown(key)} is {type_name(key)}; the keys of a dict must be str"
                    )
            values: Sequence[Any] = tuple(tree.values())
        else:
            values = tree
        guard = ContainerGuard(type(tree), keys, tuple(map(type, values)))
        described = [
            self.value(guard, position, value, f"{path}[{keys[position]!r}]" if keys else f"{path}[{position}]")
            for position, value in enumerate(values)
        ]
        self._open.discard(id(given))
        if keys is not None:
            return guard, dict(zip(keys, described, strict=True))
        return guard, tuple(described) if type(tree) is tuple else described

    def value(self, guard: ContainerGuard, position: int, given: Any, path: str) -> Any:
        try:
            value, convert = as_base(given)
        except Exception as error:
            raise refusal(path, given, error) from error
        kind = type(value)
        if kind is list and (packed := _list_as_array(value)) is not None:
            return self._data(guard, position, Leaf("list", packed[0], (len(value),)), _both(convert, packed[1]))
        if kind in (dict, list, tuple):
            child, described = self.container(value, given, path)
            guard.nested.append((position, child, convert))
            return described
        if (kind is bool or kind is float or (kind is int and value in _INT64)) and isinstance(given, (int, float)):
            guard.numbers.append(position)
            return Leaf(kind.__name__, "<f8" if kind is float else "<i8", ())
        if kind is np.ndarray or issubclass(kind, np.generic) or is_tensor(value):
            leaf, native = _array_leaf(value, path)
            # numpy takes its own subclasses as they are.
            convert = None if convert is np.asarray else convert
            guard.arrays.append((position, value.dtype, leaf.shape, _both(convert, native)))
            return leaf
        if kind is str and len(value) > _INLINE_TEXT:
            return self._data(
                guard, position, Leaf("str", "|u1", _text_bytes(value).shape), _both(convert, _text_bytes)
            )
        if kind is bytes and len(value) > _INLINE_BYTES:
            return self._data(guard, position, Leaf("bytes", "|u1", (len(value),)), _both(convert, _raw_bytes))
        if kind in (str, bytes, int, float, bool) or value is None:
            guard.constants.append((position, value, convert))
            return value
        raise UnsupportedType(
            f"{path}: an object of type {type_name(value)} cannot be carried; supported are dict, list, tuple, "
            "str, bytes, int, float, bool, None, numpy arrays and tensors (any Python object only between a client and "
            "a daemon of the same user, or one in the daemon's trusted_uids)"
        )

    @staticmethod
    def _data(guard: ContainerGuard, position: int, leaf: Leaf, convert: Convert | None) -> Leaf:
        guard.arrays.append((position, None, leaf.shape, convert))
        return leaf


class StructureGuard:
    """Guard of one structure: flattens a tree that has it."""

    def __init__(self, schema: Schema, schema_id: int, guard: ContainerGuard) -> None:
        self.schema = schema
        self.schema_id = schema_id
        self._root = guard
        #: Whether the guard is of a tuple around the tree: one that is in no container, or has to be made one.
        self.wrapped = guard.wrapped

    def flatten(self, tree: Any) -> tuple[list[Any], list[Array]] | None:
        """Return the tree's numbers and arrays in the order of the layout; None for another structure."""
        if self.wrapped:
            tree = (tree,)
        elif type(tree) is not self._root.kind:
            return None
        numbers: list[Any] = []
        arrays: list[Array] = []
        return (numbers, arrays) if _flatten(self._root, tree, numbers, arrays) else None


def _flatten(guard: ContainerGuard, tree: Any, numbers: list[Any], arrays: list[Array]) -> bool:
    if guard.keys is not None:
        if tuple(tree) != guard.keys:
            return False
        values: Sequence[Any] = tuple(tree.values())
    else:
        values = tree
    if tuple(map(type, values)) != guard.types:
        return False
    for position, constant, convert in guard.constants:
        if (values[position] if convert is None else convert(values[position])) != constant:
            return False
    for position in guard.numbers:
        numbers.append(values[position])
    for position, dtype, shape, convert in guard.arrays:
        array = values[position]
        # Almost always the same object, and then there is nothing to compare.
        if dtype is not None and array.dtype is not dtype and array.dtype != dtype:
            return False
        if convert is not None:
            array = convert(array)
        if array.shape != shape:
            return False
        arrays.append(array)
    for position, child, convert in guard.nested:
        inner = values[position] if convert is None else convert(values[position])
        if type(inner) is not child.kind or not _flatten(child, inner, numbers, arrays):
            return False
    return True


def infer_schema(tree: Any, name: str = "observation") -> tuple[Schema, ContainerGuard]:
    """Return the schema of a tree, and the guard for the next tree like it.

    Raises UnsupportedType naming the place and the type of what cannot be carried, and
    RequestRejected for a tree that is too deep, too large or has too many entries.
    """
    try:
        wrapped, described = _SchemaInference(name).infer(tree)
        schema = Schema(described, dump(described))
    except (MetadataError, RecursionError) as error:
        raise RequestRejected(f"{name}: {error}") from error
    if len(wrapped.nested) == 1 and wrapped.nested[0][2] is None:
        return schema, wrapped.nested[0][1]
    wrapped.wrapped = True
    return schema, wrapped
