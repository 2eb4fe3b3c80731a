"""Trees as a C program describes them: entries, sizes and bytes; and the trees of a reply's entries."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAX_DIMS = 16

#: Kinds, as enum shmserve_kind has them.
ARRAY, SCALAR, INT, FLOAT, BOOL, BYTES, STR, LIST, NONE, LONG, DICT, SEQUENCE, TUPLE = range(13)
DTYPES = [
    np.dtype(name)
    for name in ("?", "i1", "u1", "i2", "u2", "f2", ml_dtypes.bfloat16, "i4", "u4", "f4", "i8", "u8", "f8", "c8", "c16")
]
FLOAT32, UINT8, INT64 = DTYPES.index(np.dtype("f4")), 2, 10

_u32, _u64, _pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p


class CEntry(ctypes.Structure):
    """`shmserve_entry`."""

    _fields_ = [
        ("path", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("dtype", ctypes.c_int),
        ("dims", _u32),
        ("shape", _u64 * MAX_DIMS),
        ("constant", _pointer),
        ("constant_bytes", _u32),
        ("first_size", _u32),
    ]


class CView(ctypes.Structure):
    """`shmserve_place` and `shmserve_view`."""

    _fields_ = [("data", _pointer), ("bytes", _u64), ("shape", ctypes.POINTER(_u64))]


class Entry(NamedTuple):
    """One entry of a tree, with its value's sizes and bytes."""

    path: str
    kind: int
    dtype: int = 0
    sizes: tuple[int, ...] = ()
    data: bytes = b""


def step_of(key: str | int) -> str:
    """A key of a dict as a path has it."""
    if isinstance(key, int):
        return f"#{key}"
    step = key.replace("~", "~0").replace("/", "~1").replace("\0", "~3")
    return (f"~2{step[1:]}" if step.startswith("#") else step) or "~4"


def _list_dtype(values: list[Any]) -> int | None:
    kinds = {type(value) for value in values}
    if kinds == {int} and all(-(1 << 63) <= value < 1 << 63 for value in values):
        return DTYPES.index(np.dtype("i8"))
    return {frozenset({float}): DTYPES.index(np.dtype("f8")), frozenset({bool}): 0}.get(frozenset(kinds))


def entries_of(tree: Any, path: str = "") -> Iterator[Entry]:
    """Yield the entries of a tree, as a C program declares them."""
    if isinstance(tree, np.ndarray):
        yield Entry(path, ARRAY, DTYPES.index(tree.dtype), tree.shape, np.ascontiguousarray(tree).tobytes())
    elif isinstance(tree, np.generic):
        yield Entry(path, SCALAR, DTYPES.index(tree.dtype), (), tree.tobytes())
    elif tree is None:
        yield Entry(path, NONE)
    elif isinstance(tree, bool):
        yield Entry(path, BOOL, data=struct.pack("q", tree))
    elif isinstance(tree, int):
        if -(1 << 63) <= tree < 1 << 63:
            yield Entry(path, INT, data=struct.pack("q", tree))
        else:
            length = (tree.bit_length() if tree >= 0 else (tree + 1).bit_length()) // 8 + 1
            yield Entry(path, LONG, data=tree.to_bytes(length, "little", signed=True))
    elif isinstance(tree, float):
        yield Entry(path, FLOAT, data=struct.pack("d", tree))
    elif isinstance(tree, (str, bytes)):
        data = tree.encode("utf-8", "surrogatepass") if isinstance(tree, str) else tree
        yield Entry(path, STR if isinstance(tree, str) else BYTES, UINT8, (len(data),), data)
    elif isinstance(tree, list) and tree and (dtype := _list_dtype(tree)) is not None:
        yield Entry(path, LIST, dtype, (len(tree),), np.array(tree, DTYPES[dtype]).tobytes())
    else:
        yield from _container(tree, path)


def _container(tree: Any, path: str) -> Iterator[Entry]:
    lead = f"{path}/" if path else ""
    if isinstance(tree, dict):
        if not tree:
            yield Entry(path, DICT)
        for key, value in tree.items():
            yield from entries_of(value, lead + step_of(key))
        return
    yield Entry(path, SEQUENCE if isinstance(tree, list) else TUPLE)
    for index, value in enumerate(tree):
        yield from entries_of(value, f"{lead}{index}")


def _key_of(step: str) -> str | int:
    if step.startswith("#"):
        return int(step[1:])
    return step.replace("~4", "").replace("~3", "\0").replace("~2", "#").replace("~1", "/").replace("~0", "~")


def _value(entry: CEntry, view: CView) -> Any:
    if entry.kind == NONE:
        return None
    if entry.kind == LONG:
        return int.from_bytes(ctypes.string_at(entry.constant, entry.constant_bytes), "little", signed=True)
    if entry.kind in (DICT, SEQUENCE, TUPLE):
        return {DICT: dict, SEQUENCE: list, TUPLE: tuple}[entry.kind]()
    data = ctypes.string_at(view.data, view.bytes) if view.bytes else b""
    shape = tuple(view.shape[dimension] for dimension in range(entry.dims))
    if entry.kind in (INT, BOOL):
        number = struct.unpack("q", data)[0]
        return bool(number) if entry.kind == BOOL else number
    if entry.kind == FLOAT:
        return struct.unpack("d", data)[0]
    if entry.kind == STR:
        return data.decode("utf-8", "surrogatepass")
    if entry.kind == BYTES:
        return data
    array = np.frombuffer(data, DTYPES[entry.dtype]).reshape(shape).copy()
    if entry.kind == LIST:
        return array.tolist()
    return array if entry.kind == ARRAY else array[()]


class _Open(NamedTuple):
    path: str
    kind: int
    items: list[tuple[str | int, Any]]


def _closed(container: _Open) -> Any:
    values = [_closed(value) if isinstance(value, _Open) else value for _, value in container.items]
    if container.kind == DICT:
        return {key: value for (key, _), value in zip(container.items, values, strict=True)}
    return values if container.kind == SEQUENCE else tuple(values)


def tree_of(entries: Sequence[CEntry], views: Any) -> Any:
    """Return the tree that entries describe; a dict is known by the paths of its entries."""
    root: Any = None
    stack: list[_Open] = []
    for index, entry in enumerate(entries):
        path = entry.path.decode()
        value = _value(entry, views[index])
        if entry.kind in (DICT, SEQUENCE, TUPLE):
            value = _Open(path, entry.kind, [])
        if not path:
            root = value
            stack = [value] if isinstance(value, _Open) else []
            continue
        if root is None:
            root = _Open("", DICT, [])
            stack = [root]
        while not (not stack[-1].path or path.startswith(stack[-1].path + "/")):
            stack.pop()
        steps = path[len(stack[-1].path) :].lstrip("/").split("/") if stack[-1].path else path.split("/")
        for position, step in enumerate(steps):
            parent = stack[-1]
            key = _key_of(step) if parent.kind == DICT else int(step)
            if position < len(steps) - 1:
                inner = _Open(f"{parent.path}/{step}" if parent.path else step, DICT, [])
                parent.items.append((key, inner))
                stack.append(inner)
            else:
                parent.items.append((key, value))
                if isinstance(value, _Open):
                    stack.append(value)
    return _closed(root) if isinstance(root, _Open) else root
