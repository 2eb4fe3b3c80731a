"""Policy that every peer serves: it reads each byte of the observation and returns their sum.

The sum proves that the bytes of this request arrived, and costs each peer the same. An observation with the key
"answer" gets another reply than float32[16, 7]: a text or an array whose length follows from the sum, so that it
changes with each request. The file needs only numpy and imports nothing from this repository, so that a server in another environment can run it: Triton's Python backend does,
and a copy of it in a folder is a model package, because `Policy` has the interface of a model package's class.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

ACTIONS_SHAPE = (16, 7)
CHECK_MASK = (1 << 63) - 1
WORD_MASK = (1 << 64) - 1
#: Replies of varying length have 1 to this many words or rows; a prime, so that any step between sums reaches all.
MOST_PARTS = 61

_pack, _unpack = struct.Struct("=d").pack, struct.Struct("=Q").unpack


def checksum(observation: Any) -> int:
    """Return the sum, modulo 2**63, of all 8-byte words of all arrays and numbers, their odd bytes, and each string's CRC-32.

    The order of the leaves does not matter, so a peer may flatten the tree as it must. Tensors count as arrays, and
    integer keys as numbers.

    >>> checksum({"a": np.array([1, 2], np.uint64), "b": [np.array([3], np.uint8)]})
    6
    >>> checksum({"task": "lift"}) == zlib.crc32(b"lift")
    True
    >>> checksum({7: None}), checksum([0.5] * 9) == checksum(np.full(9, 0.5)) == checksum([[0.5] * 3] * 3)
    (7, True)
    """
    return _sum(observation) & CHECK_MASK


def _sum(leaf: Any) -> int:
    if type(leaf) is np.ndarray:
        return _sum_of_words(leaf)
    if isinstance(leaf, dict):
        total = sum(map(_sum, leaf.values()))
        for key in leaf:
            if type(key) is int:
                total += key
        return total
    if isinstance(leaf, list | tuple):
        # One array of a list of numbers: the policy's own time would hide the differences between the ways.
        if len(leaf) > 4 and set(map(type, leaf)) == {float}:
            return _sum_of_words(np.array(leaf))
        return sum(map(_sum, leaf))
    if isinstance(leaf, str):
        return zlib.crc32(leaf.encode())
    if type(leaf) is float:
        number: int = _unpack(_pack(leaf))[0]
        return number
    if type(leaf) is int:
        return leaf & WORD_MASK
    if leaf is None:
        return 0
    # A tensor's conversion to an array costs half as much as numpy's.
    return _sum_of_words(leaf.numpy() if hasattr(leaf, "numpy") else np.asarray(leaf))


def _sum_of_words(array: npt.NDArray[Any]) -> int:
    flat = (array if array.flags.c_contiguous else np.ascontiguousarray(array)).reshape(-1)
    if not flat.nbytes & 7:
        return int(np.add.reduce(flat.view(np.uint64)))
    flat = flat.view(np.uint8)
    whole = flat.size & ~7
    total = int(np.add.reduce(flat[:whole].view(np.uint64)))
    return total + int(np.add.reduce(flat[whole:], dtype=np.uint64)) if whole < flat.size else total


def actions_for(check: int) -> npt.NDArray[np.float32]:
    """Return the action chunk of a sum: float32[16, 7], every element the sum's low 16 bits."""
    actions = np.empty(ACTIONS_SHAPE, np.float32)
    actions.fill(check & 0xFFFF)
    return actions


def reply_for(observation: dict[str, Any], check: int) -> dict[str, Any]:
    """Return the reply to an observation with this sum.

    >>> reply_for({"answer": "text"}, 2)["actions"]
    'advance advance advance '
    >>> reply_for({"answer": "rows"}, 3)["actions"].shape, reply_for({}, 3)["actions"].shape
    ((4, 7), (16, 7))
    """
    if "answer" not in observation:
        return {"actions": actions_for(check), "check": check}
    parts = 1 + check % MOST_PARTS
    if observation["answer"] == "text":
        return {"actions": "advance " * parts, "check": check}
    return {"actions": np.full((parts, 7), check & 0xFFFF, np.float32), "check": check}


class Policy:
    """Policy that returns `{"actions": float32[16, 7], "check": int}`, or the reply that the observation asks for."""

    def __init__(self, path: object = None, device: object = None) -> None:
        """Accept the arguments of a model package's class, and use neither."""

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        return reply_for(observation, checksum(observation))


class WarmPolicy(Policy):
    """As `Policy`, with a method that shmserve calls shortly before a request that it expects."""

    def warm(self) -> None:
        """Run the code of a request once."""
        self.infer({"state": np.zeros(16, np.float32)})
