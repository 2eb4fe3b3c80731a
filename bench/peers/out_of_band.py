"""Encoding of a Python object as a short head and the raw memory of its arrays, for peers without a codec.

The head is 8 bytes (its length, the number of buffers), each buffer's length, and a protocol-5 pickle.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable
from typing import Any

PREFIX = struct.Struct("<II")
ALIGNMENT = 64


def up(size: int) -> int:
    """Return the next multiple of 64: arrays begin there, because the kernel copies to other addresses several times slower.

    >>> up(1), up(64), up(65)
    (64, 64, 128)
    """
    return -(-size // ALIGNMENT) * ALIGNMENT


def encode(value: Any) -> tuple[bytes, list[memoryview]]:
    """Return the head, and views of the arrays' memory; arrays that are not contiguous are copied into the head."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    sizes = struct.pack(f"<{len(raw)}Q", *(view.nbytes for view in raw))
    return PREFIX.pack(PREFIX.size + len(sizes) + len(pickled), len(raw)) + sizes + pickled, raw


def sizes_in(head: memoryview) -> tuple[int, ...]:
    """Return each buffer's length in bytes."""
    return struct.unpack_from(f"<{PREFIX.unpack_from(head)[1]}Q", head, PREFIX.size)


def decode(head: memoryview, buffers: Iterable[Any]) -> Any:
    """Return the object, with its arrays in `buffers`."""
    head_bytes, count = PREFIX.unpack_from(head)
    return pickle.loads(head[PREFIX.size + 8 * count : head_bytes], buffers=buffers)
