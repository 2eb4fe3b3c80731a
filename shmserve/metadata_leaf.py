"""Leaves of the metadata: a value whose bytes lie raw in the payload, and the limits of one tree."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

# Limits of one metadata for its reader; OPERATION_LIMIT also bounds the leaves, which take at least 7 operations each.
METADATA_LIMIT: Final = 65536  # bytes
OPERATION_LIMIT: Final = 4096
DEPTH_LIMIT: Final = 32  # containers around a value
KEY_LIMIT: Final = 1024  # characters
LONG_LIMIT: Final = 16  # bytes of an int, two's complement
DIMENSION_LIMIT: Final = 16
LEAF_BYTES_LIMIT: Final = 2**48  # a leaf is smaller

# Wire name -> bytes of an item. The names are numpy's, except for bfloat16, which numpy does not know.
DTYPES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "|b1": 1,
        "|i1": 1,
        "|u1": 1,
        "<i2": 2,
        "<u2": 2,
        "<f2": 2,
        "<bf2": 2,
        "<i4": 4,
        "<u4": 4,
        "<f4": 4,
        "<i8": 8,
        "<u8": 8,
        "<f8": 8,
        "<c8": 8,
        "<c16": 16,
    }
)

# Kind of leaf -> the dtypes it may have, and its number of dimensions (None: any).
_KINDS: Final[Mapping[str, tuple[frozenset[str], int | None]]] = MappingProxyType(
    {
        "array": (frozenset(DTYPES), None),
        "scalar": (frozenset(DTYPES), 0),
        "int": (frozenset({"<i8"}), 0),
        "float": (frozenset({"<f8"}), 0),
        "bool": (frozenset({"<i8"}), 0),
        "bytes": (frozenset({"|u1"}), 1),
        "str": (frozenset({"|u1"}), 1),
        "list": (frozenset({"|b1", "<i8", "<f8"}), 1),
    }
)


class MetadataError(ValueError):
    """A tree has no safe form, or bytes are not the safe form of a tree. Says where, and quotes 64 characters at most."""


class Leaf:
    """A value whose bytes lie raw in the payload. Not to be changed once made, since it is compared and hashed.

    kind: "array" and "scalar" (numpy's, any of DTYPES), "int", "float" and "bool" (Python's, in 8 bytes: "<i8", "<f8"
    and "<i8"), "bytes" and "str" (as UTF-8; both "|u1"), "list" (of n bool, int or float: "|b1", "<i8" or "<f8"). shape:
    any of an array, (n,) of n bytes, a str of n bytes or a list of n, else (). Checked by `dump` and `load`, not here.
    """

    __slots__ = ("dtype", "kind", "shape")

    def __init__(self, kind: str, dtype: str, shape: tuple[int, ...]) -> None:
        self.kind = kind
        self.dtype = dtype
        self.shape = shape

    def __eq__(self, other: object) -> bool:
        if type(other) is not Leaf:
            return NotImplemented
        return self.kind == other.kind and self.dtype == other.dtype and self.shape == other.shape

    def __hash__(self) -> int:
        return hash((self.kind, self.dtype, self.shape))

    def __repr__(self) -> str:
        return f"Leaf({self.kind!r}, {self.dtype!r}, {self.shape!r})"


def leaf_fault(kind: object, dtype: object, shape: object) -> str | None:
    """Return why this is not a leaf, or None. All of it is compared by exact type first: True is not a length."""
    if type(kind) is not str or kind not in _KINDS:
        return f"a leaf's kind cannot be {quoted(kind)}"
    dtypes, dimensions = _KINDS[kind]
    if type(dtype) is not str or dtype not in dtypes:
        return f"the dtype of a leaf of kind {kind!r} cannot be {quoted(dtype)}"
    if type(shape) is not tuple:
        return f"a leaf's shape is a tuple of int, not {quoted(shape)}"
    if len(shape) > DIMENSION_LIMIT if dimensions is None else len(shape) != dimensions:
        allowed = f"at most {DIMENSION_LIMIT}" if dimensions is None else dimensions
        return f"a leaf of kind {kind!r} has {allowed} dimensions, not {len(shape)}"
    size = DTYPES[dtype]
    for length in shape:
        if type(length) is not int or length < 0:
            return f"a leaf's dimension cannot have the length {quoted(length)}"
        size *= length or 1  # numpy, too, refuses an empty array whose other dimensions overflow
    if size >= LEAF_BYTES_LIMIT:
        return f"a leaf is smaller than {LEAF_BYTES_LIMIT} bytes, this one has {quoted(size)}"
    return None


def quoted(value: Any) -> str:
    """Return a foreign value as an error may show it: a short string, a number, or the name of its type."""
    kind = type(value)
    if kind is str:
        return repr(value[:64])[:64]
    if value is None:
        return "None"
    if kind is int or kind is bool:
        return repr(value) if value.bit_length() <= 64 else f"an int of {value.bit_length()} bits"
    return f"a {type_name(value)}"


def type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__[:64] if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"[:64]


def key_fault(key: object) -> str | None:
    if type(key) is not str:
        return f"a key is a str, not {quoted(key)}"
    if len(key) > KEY_LIMIT:
        return f"the key {quoted(key)} has {len(key)} characters, the limit is {KEY_LIMIT}"
    return None
