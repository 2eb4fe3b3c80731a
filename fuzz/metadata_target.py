"""Fuzz target for the reader of metadata: any bytes give a valid tree or MetadataError."""

from __future__ import annotations

import pickle

from fuzz.observations import TREES
from fuzz.target import Target
from shmserve.metadata import MetadataError, dump, load
from shmserve.schema import Schema
from shmserve.structure_guard import infer_schema


def run(data: bytes) -> None:
    try:
        tree, leaves = load(data)
    except MetadataError:
        return
    again, again_leaves = load(dump(tree))
    # Not ==: a NaN differs from itself. The safe form is one for one.
    assert dump(again) == dump(tree), "the tree is written differently than it was read"
    assert leaves == again_leaves, "leaves were lost or changed places"
    try:
        schema = Schema.from_metadata(data)
    except MetadataError:
        return
    end = schema.numbers.size
    for place in schema.arrays:
        assert end <= place.offset <= place.offset + place.size <= schema.payload_bytes, "leaves overlap"
        end = place.offset + place.size


def seeds() -> list[bytes]:
    safe = [infer_schema(tree)[0].metadata for tree in TREES]
    return [*safe, *(pickle.dumps(tree, 5) for tree in TREES)]


_OPERATIONS = tuple(code for name, code in vars(pickle).items() if name.isupper() and type(code) is bytes)
WORDS = (*_OPERATIONS, b"\x80\x05", b"<f4", b"<bf2", b"|u1", b"|b1", b"array", b"scalar", b"float", b"bool", b"list")
TARGET = Target(run, seeds, WORDS)
