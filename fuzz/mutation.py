"""Generator of mutated inputs: the same seed gives the same inputs on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence

from fuzz.target import INPUT_LIMIT_BYTES

_BOUNDARIES = [
    (value % (1 << 8 * width)).to_bytes(width, order)
    for width in (1, 2, 4, 8)
    for value in (0, 1, -1, 1 << (8 * width - 1), (1 << (8 * width - 1)) - 1, 1 << (4 * width), 64, 4096, 65536)
    for order in ("little", "big")
]


class Mutator:
    """Generator whose `next()` returns one of the given inputs, changed in one to eight places."""

    def __init__(self, seed: int, inputs: Sequence[bytes], words: Sequence[bytes]) -> None:
        self._random = random.Random(seed)
        self._inputs = inputs
        self._words = [*words, *_BOUNDARIES]

    def next(self) -> bytes:
        choose = self._random
        data = bytearray(choose.choice(self._inputs))
        for _ in range(1 + int(choose.expovariate(0.7)) % 8):
            self._change(data)
        return bytes(data[:INPUT_LIMIT_BYTES])

    def _change(self, data: bytearray) -> None:
        choose = self._random
        at = choose.randrange(len(data) + 1)
        length = 1 + int(choose.expovariate(0.1))
        match choose.randrange(9):
            case 0 if at < len(data):
                data[at] ^= 1 << choose.randrange(8)
            case 1 if at < len(data):
                data[at] = choose.randrange(256)
            case 2:
                data[at : at + length] = b""
            case 3:
                data[at:at] = choose.randbytes(min(length, 64))
            case 4:
                data[at:at] = choose.choice(self._words)
            case 5:
                word = choose.choice(self._words)
                data[at : at + len(word)] = word
            case 6:
                data[at:at] = data[at : at + length]
            case 7:  # from another input: two structures in one
                other = choose.choice(self._inputs)
                start = choose.randrange(len(other) + 1)
                data[at : at + choose.choice((0, length))] = other[start : start + length]
            case 8:
                other_at = choose.randrange(len(data) + 1)
                piece = data[at : at + length]
                data[other_at : other_at + len(piece)] = piece
