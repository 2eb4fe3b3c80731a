"""Sizes that another process changes while a payload is read: a tree of one set of sizes, or ValueError."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shmserve import pure
from shmserve.metadata import Leaf, dump
from tests.support.native import NATIVE, core

_DECODERS: list[Any] = [pure.TreeDecoder, core.TreeDecoder] if NATIVE else [pure.TreeDecoder]
_STRUCTURE = dump({"a": Leaf("array", "<u2", 2), "step": Leaf("int", "<i8", 0), "text": Leaf("str", "|u1", 1)})
#: Of one number of bytes, of another, and of none: shape of the array, length of the text.
_SIZES = [(8, 8, 10), (16, 4, 10), (4, 4, 106), (8, 8, 2**63), (2**63, 2, 10), (0, 2**64 - 1, 10), (1, 1, 1)]
_ONE, _OTHER = (8, 8), (16, 4)
_PAYLOAD_BYTES = 64 + 128 + 10
_ROUNDS = 200_000

_WRITER = """
import mmap, os, struct, sys
memory = mmap.mmap(int(sys.argv[1]), 4096)
sizes = [struct.pack("<3Q", *map(int, text.split(","))) for text in sys.argv[2:]]
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1000):
        for each in sizes:
            memory[0:8] = each[0:8]
            memory[8:16] = each[8:16]
            memory[16:24] = each[16:24]
"""


@contextmanager
def changing_sizes() -> Iterator[npt.NDArray[np.uint8]]:
    """Give the memory of a payload whose sizes another process changes all the time."""
    descriptor = os.memfd_create("sizes")
    os.ftruncate(descriptor, 4096)
    memory = np.memmap(f"/proc/self/fd/{descriptor}", np.uint8, "r+")
    memory[:] = ord("x")
    memory[24:32] = 0
    sizes = [",".join(map(str, each)) for each in _SIZES]
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(descriptor), *sizes], pass_fds=[descriptor])
    try:
        yield np.frombuffer(memory.data, np.uint8)
    finally:
        writer.kill()
        writer.wait()
        os.close(descriptor)


def read(decoder: Any, memory: npt.NDArray[np.uint8]) -> Any:
    """Return the shape of the array that each way of reading found; None where it was refused."""
    start = memory.__array_interface__["data"][0]
    shapes: list[tuple[int, ...] | None] = []
    for way in ("views", "decode", "decode_over"):
        try:
            if way == "views":
                arrays = decoder.views(memory, _PAYLOAD_BYTES)
            else:
                given = () if way == "decode" else (decoder.views(memory, _PAYLOAD_BYTES), None)
                tree = getattr(decoder, way)(memory, _PAYLOAD_BYTES, *given)
                assert (tree["step"], tree["text"]) == (0, "x" * 10)
                arrays = [tree["a"]]
        except ValueError:
            shapes.append(None)
            continue
        (array,) = arrays
        if way != "decode":
            at = array.__array_interface__["data"][0] - start
            assert at >= 0
            assert at + array.nbytes <= _PAYLOAD_BYTES
        assert array.tobytes() == b"x" * 128
        shapes.append(array.shape)
    return tuple(shapes)


@pytest.mark.fault("T04")
@pytest.mark.parametrize("decoder_type", _DECODERS, ids=lambda kind: kind.__module__)
def test_sizes_that_change_while_they_are_read_give_one_tree_or_an_error(decoder_type: Any) -> None:
    decoder = decoder_type(_STRUCTURE)
    seen: Counter[Any] = Counter()
    with changing_sizes() as memory:
        for rounds in range(_ROUNDS):
            shapes = read(decoder, memory)
            seen.update(zip(("views", "decode", "decode_over"), shapes, strict=True))
            if rounds > 2000 and len(seen) == 9:
                break

    assert {shape for _, shape in seen} == {None, _ONE, _OTHER}  # each outcome: the sizes did change


def test_the_sizes_of_this_test_are_of_one_payload_of_others_and_of_none() -> None:
    memory = np.full(4096, ord("x"), np.uint8)
    memory[24:32] = 0
    found = []
    for sizes in _SIZES:
        memory[:24] = np.frombuffer(struct.pack("<3Q", *sizes), np.uint8)
        found.append(read(pure.TreeDecoder(_STRUCTURE), memory))

    assert found == [(_ONE,) * 3, (_OTHER,) * 3, *[(None,) * 3] * 5]
