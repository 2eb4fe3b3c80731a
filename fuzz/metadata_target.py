"""Fuzz target for the readers of metadata: any bytes give a valid tree or MetadataError, and the same from both backends.

Accepted metadata has one form: the writer makes the same bytes of its tree. Both walks over a tree describe it alike.
"""

from __future__ import annotations

import pickle

import numpy as np

from fuzz.observations import TREES
from fuzz.target import Target
from shmserve.backend import TreeDecoder, TreeEncoder
from shmserve.carried_values import carried
from shmserve.flatten import flatten
from shmserve.metadata import Leaf, MetadataError, dump, load
from shmserve.pure import TreeDecoder as PureDecoder

_encoder = TreeEncoder(carried)
#: Sizes of a tree that is made of the metadata: more make an input slow, not different.
_SIZES_LIMIT = 512


def run(data: bytes) -> None:
    try:
        tree = load(data)
    except MetadataError:
        tree = _refused
    try:
        decoder = TreeDecoder(data)
    except ValueError:
        decoder = None
    assert (decoder is None) == (tree is _refused), "the backends disagree"
    if decoder is None:
        return
    assert dump(tree) == data, "a tree has two forms"
    in_python = PureDecoder(data)
    assert decoder.is_complete == in_python.is_complete
    if not decoder.is_complete or in_python.sizes_count > _SIZES_LIMIT:
        return
    sizes = np.ones(in_python.sizes_count, np.uint64)
    payload = np.zeros(in_python.payload_bytes(sizes.tolist()), np.uint8)
    payload[: sizes.nbytes] = sizes.view(np.uint8)
    made = decoder.decode(payload, payload.size)
    assert repr(made) == repr(in_python.decode(payload, payload.size)), "the backends make different trees"
    described = _encoder.describe(made)
    assert described is not None and described == flatten(made, "tree").metadata, (
        "the backends describe a tree differently"
    )


_refused = object()


def seeds() -> list[bytes]:
    safe = [flatten(tree, "tree").metadata for tree in TREES]
    keys = (0, 255, 256, 65535, 65536, -1, 1 << 31, -1 << 40, (1 << 63) - 1, -1 << 63, "", "é" * 150, "k" * 255)
    every_form: dict[str | int, object] = {key: (Leaf("array", "<bf2", 16), [None, {}], ()) for key in keys}
    many = {f"joint_{number}": Leaf("float", "<f8", 0) for number in range(40)}
    longs = [(1 << 63), -(1 << 63) - 1, (1 << 127) - 1, -(1 << 127)]
    return [*safe, dump(every_form), dump(many), dump(longs), *(pickle.dumps(tree, 5) for tree in TREES)]


_OPERATIONS = tuple(code for name, code in vars(pickle).items() if name.isupper() and type(code) is bytes)
_LEAVES = tuple(
    dump(leaf)[2:-1]
    for leaf in (
        Leaf("array", "<f4", 2),
        Leaf("device", "|u1", 3),
        Leaf("str", "|u1", 1),
        Leaf("list", "<i8", 1),
        Leaf("int", "<i8", 0),
    )
)
WORDS = (
    *_OPERATIONS,
    *_LEAVES,
    b"\x80\x05",
    b"](",
    b"}(",
    b"<f4",
    b"<bf2",
    b"|u1",
    b"|b1",
    b"array",
    b"scalar",
    b"\x8a\x08",
)
TARGET = Target(run, seeds, WORDS)
