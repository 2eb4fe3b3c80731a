"""Writer of the safe form: a tree is checked, then the C pickler writes it without a memo.

The check comes first, so that the pickler meets only types that it writes in the safe form (metadata.py).
"""

from __future__ import annotations

import io
import pickle
from typing import Any, Final, TypeAlias

from .metadata_leaf import (
    DEPTH_LIMIT,
    LONG_LIMIT,
    METADATA_LIMIT,
    OPERATION_LIMIT,
    Leaf,
    MetadataError,
    key_fault,
    leaf_fault,
    quoted,
    type_name,
)

# The place of a value in the tree: that of its container, and its key or index there. Spelled out only in an error.
_Place: TypeAlias = "tuple[_Place, object] | None"

_ADVICE: Final = "; long strings, and long lists of numbers as one array, belong in the payload"


def dump(tree: object) -> bytes:
    """The safe form of a tree of dict (with str keys), list, tuple, str, bytes, int, float, bool, None and Leaf.

    Leaves are numbered in the order of a walk through the tree; the same Leaf met twice is two leaves. Types are taken
    exactly, because a subclass would come back as its base. Equal trees give equal bytes, whichever of their parts are
    the same object, so the bytes can stand for the schema. Raises MetadataError, which names the place in the tree.
    """
    _check_tree(tree)
    file = io.BytesIO()
    _Writer(file).dump(tree)
    metadata = file.getvalue()
    if len(metadata) > METADATA_LIMIT:
        raise _misfit(None, f"takes {len(metadata)} bytes, the limit is {METADATA_LIMIT}{_ADVICE}")
    return metadata


class _Writer(pickle.Pickler):
    """The C pickler, which asks of everything it meets whether it is a leaf."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, 5)
        self.fast = True  # no memo: the reader wants none of containers, and bytes must not depend on what is shared
        self._leaf_count = 0

    def persistent_id(self, obj: object) -> tuple[int, str, str, tuple[int, ...]] | None:
        if type(obj) is not Leaf:
            return None
        index = self._leaf_count
        self._leaf_count = index + 1
        return index, obj.kind, obj.dtype, obj.shape


def _check_tree(tree: object) -> None:
    """Raises for what has no safe form; a container that holds itself is a tree too deep, or of too many operations."""
    operations = 4  # PROTO, FRAME, STOP, and one for the tree; each container counts one for every value in it
    text_bytes = 0
    level: list[tuple[Any, _Place]] = [(tree, None)]
    for _ in range(DEPTH_LIMIT + 1):
        below: list[tuple[Any, _Place]] = []
        for value, place in level:
            kind = type(value)
            if kind is Leaf:
                if fault := leaf_fault(value.kind, value.dtype, value.shape):
                    raise _misfit(place, fault)
                dimensions = len(value.shape)
                operations += 6 + dimensions + (dimensions > 3)
            elif kind is dict or kind is list or kind is tuple:
                operations += len(value) + _overhead(kind, len(value))
                if operations > OPERATION_LIMIT:  # before `below` grows with a container that is met again and again
                    raise _misfit(place, f"makes it more than {OPERATION_LIMIT} operations{_ADVICE}")
                if kind is dict:
                    for key, child in value.items():
                        if fault := key_fault(key):
                            raise _misfit(place, fault)
                        text_bytes += _text_bytes(key, place)
                        below.append((child, (place, key)))
                else:
                    below += [(child, (place, index)) for index, child in enumerate(value)]
            elif kind is str:
                text_bytes += _text_bytes(value, place)
            elif kind is bytes:
                text_bytes += len(value)
            elif kind is int:
                if not -(1 << (8 * LONG_LIMIT - 1)) <= value < 1 << (8 * LONG_LIMIT - 1):
                    raise _misfit(place, f"{quoted(value)} takes more than {LONG_LIMIT} bytes")
            elif not (value is None or kind is bool or kind is float):
                raise _misfit(place, f"{type_name(value)} has no safe form (types are taken exactly)")
            if operations > OPERATION_LIMIT:
                raise _misfit(place, f"makes it more than {OPERATION_LIMIT} operations{_ADVICE}")
            if text_bytes > METADATA_LIMIT:
                raise _misfit(place, f"makes it {text_bytes} bytes of text, the limit is {METADATA_LIMIT}{_ADVICE}")
        if not below:
            return
        level = below
    raise _misfit(level[0][1], f"lies within more than {DEPTH_LIMIT} containers, or within itself")


def _overhead(kind: type, length: int) -> int:
    """Return the operations of a container beside one for itself and one for each value, at most."""
    if kind is tuple:
        return int(length > 3)  # a MARK, unless an operation exists for a tuple of this length
    batches = length if length < 2 else 2 * (length // 1000 + 1)  # SETITEM, or a MARK and SETITEMS for every 1,000
    return batches + length if kind is dict else batches


def _text_bytes(text: str, place: _Place) -> int:
    """The length as UTF-8; of what is far too long, the characters suffice."""
    if text.isascii() or len(text) > METADATA_LIMIT:
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise _misfit(place, f"{quoted(text)} holds a surrogate, which UTF-8 has no bytes for") from None


def _misfit(place: _Place, fault: str) -> MetadataError:
    path = ""
    while place is not None:
        place, key = place
        path = f"[{quoted(key)}]{path}"
    return MetadataError(f"no metadata for tree{path}: {fault}")
