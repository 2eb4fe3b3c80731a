"""Fuzz target for the reader of a slot: wrong lengths, schemas that change their meaning, any metadata, any payload.

An input is two heads (schema, metadata_bytes, payload_bytes, flags, where the metadata begins) and the slot's bytes.
Where there is a native core, Python makes the same tree of the same bytes, and the same bytes of the same tree.
"""

from __future__ import annotations

import pickle
import struct

import numpy as np

from fuzz.observations import TREES
from fuzz.target import Target
from shmserve.codec import Decoder, DoesNotFit, Encoder, SlotMemory, owned_array
from shmserve.errors import RequestRejected
from shmserve.metadata import MetadataError
from shmserve.schema import Schema

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
        try:
            tree = decoder.decode(slot, schema, metadata_bytes, payload_bytes, bool(flags & 1))
        except MetadataError:
            continue
        _check(tree)
        _check_native(decoder._schemas.get(schema, metadata_bytes, payload_bytes, slot), slot, tree)


def _check_native(schema: Schema, slot: SlotMemory, tree: object) -> None:
    """Compare the trees that pure Python makes with those of the native core."""
    decoder = schema.decoder
    if decoder is None:
        return
    views = [place.view(slot.payload) for place in schema.arrays]
    leaves = [owned_array(place, view) for place, view in zip(schema.arrays, views, strict=True)]
    # Pickles of equal trees with the same shared parts show every difference of type, bit or container.
    built = pickle.dumps(schema.unflatten(schema.numbers.unpack_from(slot.raw, 0), leaves), 5)
    assert pickle.dumps(tree, 5) == built, "Python decodes another tree"
    assert pickle.dumps(decoder.unflatten(slot.payload, leaves), 5) == built, "Python builds another tree"
    if schema.is_all_arrays:
        staged = _slot()
        decoder.stage(slot.payload, staged.payload)
        lent = decoder.decode_in_place(staged.payload, [place.view(staged.payload) for place in schema.arrays])
        assert pickle.dumps(lent, 5) == built, "staging gives another tree"


def _check(tree: object) -> None:
    """Write a decoded tree into a slot and check that it decodes to the same tree."""
    first, second = _slot(), _slot()
    encoder = Encoder()
    try:
        encoded = encoder.encode(tree, first)
        again = Encoder().encode(Decoder().decode(first, *encoded), second)
    except (RequestRejected, DoesNotFit):
        return  # more entries than an encoder may write, or longer metadata from a new encoder
    assert encoded == again, "the lengths change"
    assert (first.metadata == second.metadata).all(), "the structure changes"
    # The first time Python describes and writes it; afterwards it is recognised in one step.
    write = encoder._cached[0].encode_into
    if write is not None:
        native = _slot()
        assert write(tree, native.payload) == 1, "a described structure is not recognised"
        assert (first.payload == native.payload).all(), "Python writes other bytes"


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


TARGET = Target(run, seeds, (b"\xff\xff", b"\x00\x04", b"\x00\x10\x00\x00", b"|u1", b"|b1", b"str"))
