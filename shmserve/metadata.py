r"""The safe form of a tree's metadata: pickle-5 bytes of one canonical form, read without an unpickler.

The metadata describes a tree of dict, list and tuple: the keys, and for each value in the payload a persistent id (kind,
dtype, dimensions). It says no length: lengths are data, at the front of the payload (schema.py). None and integers beyond
64 bits are the only values in it. Equal structures have equal bytes, so the bytes stand for the structure.

    metadata  = PROTO 5, value, STOP
    value     = NONE | LONG1 (9 to 16 bytes, as few as possible)
              | kind: SHORT_BINUNICODE, dtype: SHORT_BINUNICODE, dimensions: BININT1, TUPLE3, BINPERSID
              | EMPTY_DICT, MARK, (key, value)*, SETITEMS
              | EMPTY_LIST, MARK, value*, APPENDS
              | MARK, value*, TUPLE
    key       = SHORT_BINUNICODE, or BINUNICODE from 256 bytes on
              | BININT1, BININT2, BININT or LONG1 (64 bits at most): the first of these that has room

>>> import pickletools
>>> metadata = dump({"task": Leaf("str", "|u1", 1), 7: (Leaf("array", "<f4", 2), None)})
>>> pickletools.dis(metadata)
    0: \x80 PROTO      5
    2: }    EMPTY_DICT
    3: (    MARK
    4: \x8c     SHORT_BINUNICODE 'task'
   10: \x8c     SHORT_BINUNICODE 'str'
   15: \x8c     SHORT_BINUNICODE '|u1'
   20: K        BININT1    1
   22: \x87     TUPLE3
   23: Q        BINPERSID
   24: K        BININT1    7
   26: (        MARK
   27: \x8c         SHORT_BINUNICODE 'array'
   34: \x8c         SHORT_BINUNICODE '<f4'
   39: K            BININT1    2
   41: \x87         TUPLE3
   42: Q            BINPERSID
   43: N            NONE
   44: t            TUPLE      (MARK at 26)
   45: u        SETITEMS   (MARK at 3)
   46: .    STOP
highest protocol among opcodes = 4
>>> load(metadata)
{'task': Leaf(kind='str', dtype='|u1', dimensions=1), 7: (Leaf(kind='array', dtype='<f4', dimensions=2), None)}
>>> load(b"\x80\x05cos\nsystem\n.")
Traceback (most recent call last):
shmserve.metadata_leaf.MetadataError: metadata refused at byte 2 (GLOBAL): no value begins with it

`load` shows received bytes to no unpickler, since even one that refuses every global can be made to take gigabytes or to
crash the process. It is a recursive descent over the grammar, without a stack or a memo; native/core/schema.c is the same
in C.
"""

from __future__ import annotations

import functools
import pickle
from typing import Any, Final

from .metadata_leaf import (
    DEPTH_LIMIT,
    DIMENSION_LIMIT,
    DTYPES,
    KEY_LIMIT,
    LEAF_BYTES_LIMIT,
    LONG_LIMIT,
    METADATA_LIMIT,
    NODE_LIMIT,
    Leaf,
    MetadataError,
    leaf_fault,
    quoted,
    type_name,
)

__all__ = [
    "DEPTH_LIMIT",
    "DIMENSION_LIMIT",
    "DTYPES",
    "KEY_LIMIT",
    "LEAF_BYTES_LIMIT",
    "METADATA_LIMIT",
    "NODE_LIMIT",
    "Leaf",
    "MetadataError",
    "dump",
    "int64",
    "key_bytes",
    "leaf_bytes",
    "load",
    "long_bytes",
]

PROTO: Final = pickle.PROTO + b"\x05"
STOP: Final = pickle.STOP
NONE: Final = pickle.NONE
#: Operations that begin and end a container.
BEGIN: Final[dict[type, bytes]] = {
    dict: pickle.EMPTY_DICT + pickle.MARK,
    list: pickle.EMPTY_LIST + pickle.MARK,
    tuple: pickle.MARK,
}
END: Final[dict[type, bytes]] = {dict: pickle.SETITEMS, list: pickle.APPENDS, tuple: pickle.TUPLE}

int64: Final = range(-(1 << 63), 1 << 63)
_ADVICE: Final = "; long lists of numbers belong in one array"

# Writer


def dump(tree: object) -> bytes:
    """Return the metadata of a tree of dict (with str or int keys), list, tuple, None, int beyond 64 bits, and Leaf.

    Raises MetadataError, which names the place in the tree, for anything else, and for a tree that is too deep or too large.
    """
    parts = [PROTO]
    _write(tree, parts, [0], ())
    parts.append(STOP)
    metadata = b"".join(parts)
    if len(metadata) > METADATA_LIMIT:
        raise MetadataError(f"no metadata for tree: it takes {len(metadata)} bytes, the limit is {METADATA_LIMIT}")
    return metadata


def _write(value: Any, parts: list[bytes], nodes: list[int], place: tuple[object, ...]) -> None:
    nodes[0] += 1
    if nodes[0] > NODE_LIMIT:
        raise _misfit(place, f"makes it more than {NODE_LIMIT} values{_ADVICE}")
    if len(place) > DEPTH_LIMIT:
        raise _misfit(place, f"lies within more than {DEPTH_LIMIT} containers")
    kind = type(value)
    if kind is Leaf:
        if fault := leaf_fault(*value):
            raise _misfit(place, fault)
        parts.append(leaf_bytes(value))
    elif value is None:
        parts.append(NONE)
    elif kind is int and value not in int64:
        if (written := long_bytes(value)) is None:
            raise _misfit(place, f"{quoted(value)} takes more than {LONG_LIMIT} bytes")
        parts.append(written)
    elif kind is dict or kind is list or kind is tuple:  # not by hash, which a type may refuse
        parts.append(BEGIN[kind])
        for key, child in value.items() if kind is dict else enumerate(value):
            if kind is dict:
                if fault := key_fault(key):
                    raise _misfit(place, fault)
                parts.append(key_bytes(key))
            _write(child, parts, nodes, (*place, key))
        parts.append(END[kind])
    else:
        raise _misfit(place, f"{type_name(value)} has no safe form (types are taken exactly)")


@functools.lru_cache(maxsize=1024)
def leaf_bytes(leaf: Leaf) -> bytes:
    """Return the operations of a leaf."""
    kind, dtype = leaf.kind.encode(), leaf.dtype.encode()
    text = pickle.SHORT_BINUNICODE
    names = text + bytes([len(kind)]) + kind + text + bytes([len(dtype)]) + dtype
    return names + pickle.BININT1 + bytes([leaf.dimensions]) + pickle.TUPLE3 + pickle.BINPERSID


def key_fault(key: object) -> str | None:
    """Return why this cannot be a key, or None."""
    if type(key) is int:
        return None if key in int64 else f"the key {quoted(key)} has more than 64 bits"
    if type(key) is not str:
        return f"a key is a str or an int, not {quoted(key)}"
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return f"the key {quoted(key)} holds a surrogate, which UTF-8 has no bytes for"
    return f"the key {quoted(key)} has {size} bytes, the limit is {KEY_LIMIT}" if size > KEY_LIMIT else None


def key_bytes(key: str | int) -> bytes:
    """Return the operation of a key that has no fault."""
    return _text_key(key) if type(key) is str else _int_key(key)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=4096)
def _text_key(key: str) -> bytes:
    text = key.encode()
    if len(text) < 256:
        return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text
    return pickle.BINUNICODE + len(text).to_bytes(4, "little") + text


def _int_key(key: int) -> bytes:
    if 0 <= key < 1 << 8:
        return pickle.BININT1 + bytes([key])
    if 0 <= key < 1 << 16:
        return pickle.BININT2 + key.to_bytes(2, "little")
    if -(1 << 31) <= key < 1 << 31:
        return pickle.BININT + key.to_bytes(4, "little", signed=True)
    written = pickle.encode_long(key)
    return pickle.LONG1 + bytes([len(written)]) + written


def long_bytes(value: int) -> bytes | None:
    """Return the operation of an int beyond 64 bits; None if it is too long."""
    written = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(written)]) + written if len(written) <= LONG_LIMIT else None


def _misfit(place: tuple[object, ...], fault: str) -> MetadataError:
    path = "".join(f"[{quoted(step)}]" for step in place)
    return MetadataError(f"no metadata for tree{path:.400}: {fault}")


# Reader


def load(data: bytes | memoryview) -> Any:
    """Return the tree that `dump` was given, with its leaves in place.

    data: written by anybody, and perhaps still being written: it is copied once, and only the copy is looked at. Raises
    MetadataError and nothing else.
    """
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if size > METADATA_LIMIT:
        raise MetadataError(f"metadata refused: {size} bytes, the limit is {METADATA_LIMIT}")
    reader = _Reader(bytes(data))
    try:
        return reader.tree()
    except _Fault as error:
        at = reader.at
        name = _NAMES.get(reader.data[at : at + 1], "no operation")
        raise MetadataError(f"metadata refused at byte {at} ({name}): {error}") from None


class _Fault(Exception):
    """Why an operation is refused; `load` adds which and where."""


class _Reader:
    """Recursive descent over the metadata. `at` is the operation that is being read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self._next = 0
        self._nodes = 0

    def tree(self) -> Any:
        if self.data[:2] != PROTO:
            raise _Fault("does not begin with PROTO 5")
        self._next = 2
        tree = self._value(self._operation(), 0)
        if self._operation() != STOP:
            raise _Fault("expected STOP after the tree")
        if self._next != len(self.data):
            raise _Fault(f"{len(self.data) - self._next} bytes follow")
        return tree

    def _operation(self) -> bytes:
        self.at = self._next
        self._next += 1
        operation = self.data[self.at : self._next]
        if not operation:
            raise _Fault("the metadata ends before its tree does")
        return operation

    def _bytes(self, count: int) -> bytes:
        taken = self.data[self._next : self._next + count]
        if len(taken) != count:
            raise _Fault("its argument is cut short")
        self._next += count
        return taken

    def _number(self, count: int) -> int:
        return int.from_bytes(self._bytes(count), "little")

    def _value(self, operation: bytes, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > NODE_LIMIT:
            raise _Fault(f"makes it more than {NODE_LIMIT} values")
        if depth > DEPTH_LIMIT:
            raise _Fault(f"a value lies within more than {DEPTH_LIMIT} containers")
        if operation == NONE:
            return None
        if operation == pickle.LONG1:
            return self._long()
        if operation == pickle.SHORT_BINUNICODE:
            return self._leaf()
        if operation == pickle.EMPTY_DICT:
            return self._dict(depth)
        if operation == pickle.EMPTY_LIST:
            self._mark()
            return self._values(pickle.APPENDS, depth)
        if operation == pickle.MARK:
            return tuple(self._values(pickle.TUPLE, depth))
        raise _Fault("no value begins with it")

    def _mark(self) -> None:
        if self._operation() != pickle.MARK:
            raise _Fault("expected MARK, and the container's entries")

    def _values(self, end: bytes, depth: int) -> list[Any]:
        values = []
        while (operation := self._operation()) != end:
            values.append(self._value(operation, depth + 1))
        return values

    def _dict(self, depth: int) -> dict[str | int, Any]:
        self._mark()
        values: dict[str | int, Any] = {}
        while (operation := self._operation()) != pickle.SETITEMS:
            key = self._key(operation)
            if key in values:
                raise _Fault(f"the key {quoted(key)} is there twice")
            values[key] = self._value(self._operation(), depth + 1)
        return values

    def _key(self, operation: bytes) -> str | int:
        if operation in (pickle.SHORT_BINUNICODE, pickle.BINUNICODE):
            return self._text_key(4 if operation == pickle.BINUNICODE else 1)
        if operation in _INT_BYTES:
            written = self._bytes(_INT_BYTES[operation])
            key = int.from_bytes(written, "little", signed=operation == pickle.BININT)
        elif operation == pickle.LONG1:
            key = self._signed(8)
        else:
            raise _Fault("a key is a str or an int")
        if _int_key(key) != self.data[self.at : self._next]:
            raise _Fault(f"the key {key} is not in its shortest form")
        return key

    def _text_key(self, width: int) -> str:
        size = self._number(width)
        if size > KEY_LIMIT:
            raise _Fault(f"a key of {size} bytes, the limit is {KEY_LIMIT}")
        if width == 4 and size < 256:
            raise _Fault(f"a key of {size} bytes is not in its shortest form")
        try:
            return self._bytes(size).decode()
        except UnicodeDecodeError:
            raise _Fault("not UTF-8") from None

    def _signed(self, limit: int) -> int:
        count = self._number(1)
        if count > limit:
            raise _Fault(f"an int of {count} bytes, the limit is {limit}")
        return int.from_bytes(self._bytes(count), "little", signed=True)

    def _long(self) -> int:
        value = self._signed(LONG_LIMIT)
        if value in int64 or long_bytes(value) != self.data[self.at : self._next]:
            raise _Fault("an int of 64 bits lies in the payload, a longer one has its shortest form")
        return value

    def _leaf(self) -> Leaf:
        kind = self._name()
        if self.data[self._next : self._next + 1] != pickle.SHORT_BINUNICODE:
            raise _Fault("a leaf is (kind, dtype, dimensions)")
        self._next += 1
        dtype = self._name()
        if self.data[self._next : self._next + 1] != pickle.BININT1:
            raise _Fault("a leaf is (kind, dtype, dimensions)")
        self._next += 1
        dimensions = self._number(1)
        if fault := leaf_fault(kind, dtype, dimensions):
            raise _Fault(fault)
        if self._bytes(2) != pickle.TUPLE3 + pickle.BINPERSID:
            raise _Fault("a leaf ends with TUPLE3 and BINPERSID")
        return Leaf(kind, dtype, dimensions)

    def _name(self) -> str:
        return self._bytes(self._number(1)).decode("utf-8", "replace")


_INT_BYTES: Final = {pickle.BININT1: 1, pickle.BININT2: 2, pickle.BININT: 4}
# For errors: pickle keeps its opcodes as constants of one byte.
_NAMES: Final = {code: name for name, code in vars(pickle).items() if name.isupper() and type(code) is bytes}
