"""Leaf of the metadata: a value whose bytes lie in the payload, and the limits of one tree."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

# Limits of one metadata for its reader. native/core/schema.h has the same; a test compares both.
METADATA_LIMIT: Final = 65536  # bytes
NODE_LIMIT: Final = 4096  # values, containers included
DEPTH_LIMIT: Final = 32  # containers around a value
KEY_LIMIT: Final = 1024  # bytes of a key as UTF-8
LONG_LIMIT: Final = 16  # bytes of an int, two's complement
DIMENSION_LIMIT: Final = 16
LEAF_BYTES_LIMIT: Final = 2**48  # a leaf is smaller
DEVICE_ALIGNMENT: Final = 256  # bytes, of a leaf in a slot's area of GPU memory

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
KINDS: Final[Mapping[str, tuple[frozenset[str], int | None]]] = MappingProxyType(
    {
        "array": (frozenset(DTYPES), None),
        "device": (frozenset(DTYPES), None),
        "scalar": (frozenset(DTYPES), 0),
        "int": (frozenset({"<i8"}), 0),
        "float": (frozenset({"<f8"}), 0),
        "bool": (frozenset({"<i8"}), 0),
        "bytes": (frozenset({"|u1"}), 1),
        "str": (frozenset({"|u1"}), 1),
        "list": (frozenset({"|b1", "<i8", "<f8"}), 1),
    }
)

#: Kinds whose value is one word of the payload.
NUMBERS: Final = frozenset({"int", "float", "bool"})

#: Kind of an array whose bytes lie in the slot's area of GPU memory.
DEVICE: Final = "device"


class MetadataError(ValueError):
    """A tree has no safe form, or bytes are not the safe form of a tree. Says where, and quotes 64 characters at most."""


class Leaf(NamedTuple):
    """A value whose bytes lie in the payload, and so do the lengths of its dimensions.

    kind: "array" and "scalar" (numpy's, any of DTYPES), "device" (an array whose bytes lie in the slot's area of GPU memory), "int", "float" and "bool" (Python's, in 8 bytes: "<i8", "<f8"
    and "<i8"), "bytes" and "str" (as UTF-8; both "|u1"), "list" (of bool, int or float: "|b1", "<i8" or "<f8").
    dimensions: any number of an array on the host or a device, 1 of bytes, str and list, else 0. Checked by `dump` and `load`, not here.
    """

    kind: str
    dtype: str
    dimensions: int


def leaf_fault(kind: object, dtype: object, dimensions: object) -> str | None:
    """Return why this is not a leaf, or None. All of it is compared by exact type first."""
    if type(kind) is not str or kind not in KINDS:
        return f"a leaf's kind cannot be {quoted(kind)}"
    dtypes, expected = KINDS[kind]
    if type(dtype) is not str or dtype not in dtypes:
        return f"the dtype of a leaf of kind {kind!r} cannot be {quoted(dtype)}"
    if type(dimensions) is not int:
        return f"a leaf's number of dimensions is an int, not {quoted(dimensions)}"
    if not 0 <= dimensions <= DIMENSION_LIMIT if expected is None else dimensions != expected:
        allowed = f"at most {DIMENSION_LIMIT}" if expected is None else expected
        return f"a leaf of kind {kind!r} has {allowed} dimensions, not {quoted(dimensions)}"
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
    """Return the name of a value's type as an error shows it."""
    kind = type(value)
    return kind.__qualname__[:64] if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"[:64]
