"""Fuzz target for the reader of a slot: wrong lengths, schemas that change their meaning, any metadata, any payload.

An input is two heads (schema, metadata_bytes, payload_bytes, flags) and the slot's bytes. The backend that runs and the
pure one make the same tree of the same bytes, or both refuse them, and the same bytes of the same tree.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any

import numpy as np

from fuzz.observations import TREES
from fuzz.target import Target
from shmserve import backend, pure
from shmserve.carried_values import carried
from shmserve.codec import Decoder, DoesNotFit, Encoder, SlotMemory
from shmserve.errors import RequestRejected
from shmserve.metadata import MetadataError

_HEAD = struct.Struct("<BHIB")
_HEADS_BYTES = 2 * _HEAD.size
_METADATA_BYTES = 1024
_PAYLOAD_BYTES = 4096


def run(data: bytes) -> None:
    heads, data = data[:_HEADS_BYTES].ljust(_HEADS_BYTES, b"\0"), data[_HEADS_BYTES:]
    slot = _slot()
    written = np.frombuffer(data, np.uint8)[: _METADATA_BYTES + _PAYLOAD_BYTES]
    slot.metadata[: written.size] = written[:_METADATA_BYTES]
    slot.payload[: max(0, written.size - _METADATA_BYTES)] = written[_METADATA_BYTES:]
    decoder = Decoder()
    first, second = heads[: _HEAD.size], heads[_HEAD.size :]
    for head in (first, second) if first != second else (first,):
        schema, metadata_bytes, payload_bytes, flags = _HEAD.unpack(head)
        _compare_readers(slot, metadata_bytes, payload_bytes)
        try:
            tree = decoder.decode(slot, schema, metadata_bytes, payload_bytes, bool(flags & 1))
        except MetadataError:
            continue
        _check(tree)


def _compare_readers(slot: SlotMemory, metadata_bytes: int, payload_bytes: int) -> None:
    """Read the slot with both backends, each of its ways."""
    metadata = slot.metadata[:metadata_bytes].tobytes()
    found = [_read(module, metadata, slot, payload_bytes) for module in (backend, pure)]
    assert found[0] == found[1], "Python reads something else"


def _read(module: Any, metadata: bytes, slot: SlotMemory, payload_bytes: int) -> object:
    """Return a pickle of the results, or the name of the step that refused the bytes."""
    try:
        decoder = module.TreeDecoder(metadata)
    except ValueError:
        return "metadata"
    try:
        views = decoder.views(slot.payload, payload_bytes)
    except ValueError:
        return "sizes"
    shown = [(view.dtype.str, view.shape, view.tobytes()) for view in views]
    if not decoder.is_complete:
        return shown
    try:
        tree = pickle.dumps(decoder.decode(slot.payload, payload_bytes), 5)
    except ValueError:
        return "text"
    staged = _slot()
    assert module.stage(slot.payload, payload_bytes, staged.payload, None, 0) == 0
    views = decoder.views(staged.payload, payload_bytes)
    # Pickles of equal trees with the same shared parts show every difference of type, bit or container.
    for wrap in (None, np.copy):
        over = decoder.decode_over(staged.payload, payload_bytes, views, wrap)
        assert pickle.dumps(over, 5) == tree, "staging gives another tree"
    return shown, tree


def _check(tree: object) -> None:
    """Write a decoded tree into a slot and check that it decodes to the same tree."""
    first, second, third = _slot(), _slot(), _slot()
    try:
        encoded = Encoder().encode(tree, first)
        again = Encoder().encode(Decoder().decode(first, *encoded), second)
    except (RequestRejected, DoesNotFit):
        return  # more entries than an encoder may write, or longer metadata from a new encoder
    assert encoded == again, "the lengths change"
    assert (first.metadata == second.metadata).all(), "the structure changes"
    in_python = pure.TreeEncoder(carried)
    metadata = first.metadata[: encoded.metadata_bytes].tobytes()
    assert in_python.describe(tree) == metadata, "Python describes another structure"
    in_python.remember(metadata, encoded.schema, None)
    assert in_python.encode_into(tree, third, None, 0, False) == (*encoded[:3], 0), "Python writes other lengths"
    assert (first.payload == third.payload).all(), "Python writes other bytes"


def _slot() -> SlotMemory:
    return SlotMemory(np.zeros(_METADATA_BYTES, np.uint8), np.zeros(_PAYLOAD_BYTES, np.uint8))


def seeds() -> list[bytes]:
    found = []
    for tree in TREES:
        slot = _slot()
        encoded = Encoder().encode(tree, slot)
        head = _HEAD.pack(encoded.schema, encoded.metadata_bytes, encoded.payload_bytes, 0)
        found.append(head + head + slot.metadata.tobytes() + slot.payload[: encoded.payload_bytes].tobytes())
    return found


#: Lengths, at the front of a payload, among them.
_LENGTHS = tuple(length.to_bytes(8, "little") for length in (0, 1, 2, 3, 64, 1 << 31, 1 << 47, 1 << 61, 1 << 63))
TARGET = Target(
    run, seeds, (b"\xff\xff", b"\x00\x04", b"\x00\x10\x00\x00", b"|u1", b"|b1", b"str", b"device", *_LENGTHS)
)
