"""Observations whose sizes or structure change from request to request, and the fixed one that they are compared with.

Each is the observation of `fixed` with one thing that varies around its size there, so that the policy's own work is
about the same. Robots build a new tree for each request, so `stamp`
does. The contents are noise that follows from the name, and the sizes follow from the number of the request, so every
way is asked the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.peers.policy import checksum, reply_for
from bench.workloads import BUILDERS, INSTRUCTION, Asked, WrongReply, workload

Tree = dict[str, Any]
Noise = np.random.Generator
#: Points of the fixed cloud, and the mean of those that vary.
POINTS = 1000
#: Numbers of the fixed list, and the mean of those that vary.
RANGES = 50
JOINTS = ("base", "shoulder", "elbow", "forearm", "wrist", "gripper")
EIGHT_SIZES = tuple(range(POINTS - 350, POINTS + 351, 100))
COLOURS = ("red", "green", "blue", "yellow", "orange", "white", "black", "transparent")
LABELS = ("cup", "plate", "bottle", "screwdriver", "hand")


def spread(count: int, least: int, most: int) -> int:
    """Return a number that passes through all of `least` to `most` in leaps, so that consecutive ones differ.

    >>> [spread(count, 5, 15) for count in range(12)]
    [5, 12, 8, 15, 11, 7, 14, 10, 6, 13, 9, 5]
    """
    numbers = most - least + 1
    step = next(step for step in range(round(numbers * 0.618), numbers + 2) if np.gcd(step, numbers) == 1)
    return least + count * step % numbers


@dataclass(frozen=True)
class Kind:
    """Kind of change: what the tables call it, and the tree of request `count` from the fixed tree and noise."""

    what: str
    build: Callable[[Tree, Noise], Callable[[int], Tree]]
    #: A new structure rather than another length: it may cost more.
    new_structure: bool = False


class VaryingWorkload:
    """Workload that builds a new observation for each request."""

    def __init__(self, name: str) -> None:
        self.name = name
        noise = np.random.default_rng(zlib.crc32(name.encode()))
        fixed = {
            "image": noise.integers(0, 256, (8, 8, 3), np.uint8),
            "state": noise.standard_normal(6, np.float32),
            "instruction": INSTRUCTION,
            "points": noise.standard_normal((POINTS, 3), np.float32),
            "ranges": noise.standard_normal(RANGES).tolist(),
            "joints": dict(zip(JOINTS, noise.standard_normal(len(JOINTS)).tolist(), strict=True)),
        }
        self._word = fixed["state"].view(np.uint64)[:1]
        self._build = VARYING[name].build(fixed, noise)
        self.observation = self._build(0)

    @property
    def array_bytes(self) -> int:
        return sum(leaf.nbytes for leaf in self.observation.values() if isinstance(leaf, np.ndarray))

    def stamp(self, count: int) -> None:
        """Build the observation of request `count`, and write that number over the first 8 bytes of its state."""
        self.observation = self._build(count)
        self._word[0] = count

    def verify(self, reply: Tree, count: int) -> None:
        """Raise WrongReply unless this is the complete reply to the present observation."""
        check = checksum(self.observation)
        if reply["check"] != check:
            raise WrongReply(f"{self.name}: request {count} has the sum {check}, the reply says {reply['check']}")
        given, expected = reply["actions"], reply_for(self.observation, check)["actions"]
        if type(given) is not type(expected) or not np.array_equal(given, expected):
            raise WrongReply(f"{self.name}: the actions of request {count} are not those of its sum {check}")


def asked_of(name: str) -> Asked:
    """Build a workload of either kind by name."""
    return VaryingWorkload(name) if name in VARYING else workload(name)


def _fixed(fixed: Tree, noise: Noise) -> Callable[[int], Tree]:
    return lambda count: dict(fixed)


def _points(fixed: Tree, noise: Noise) -> Callable[[int], Tree]:
    cloud = noise.standard_normal((POINTS * 3 // 2, 3), np.float32)
    return lambda count: {**fixed, "points": cloud[: spread(count, POINTS // 2, POINTS * 3 // 2)]}


def _eight_sizes(fixed: Tree, noise: Noise) -> Callable[[int], Tree]:
    cloud = noise.standard_normal((EIGHT_SIZES[-1], 3), np.float32)
    return lambda count: {**fixed, "points": cloud[: EIGHT_SIZES[count % len(EIGHT_SIZES)]]}


def _text(fixed: Tree, noise: Noise) -> Callable[[int], Tree]:
    def build(count: int) -> Tree:
        colour, label = COLOURS[count % len(COLOURS)], LABELS[count % len(LABELS)]
        return {**fixed, "instruction": f"pick up the {colour} {label}, number {count}, and put it down"}

    return build


def _floats(fixed: Tree, noise: Noise) -> Callable[[int], Tree]:
    ranges = noise.standard_normal(2 * RANGES - 5).tolist()
    return lambda count: {**fixed, "ranges": ranges[: spread(count, 5, 2 * RANGES - 5)]}


def _detections(fixed: Tree, noise: Noise) -> Callable[[int], Tree]:
    boxes = noise.standard_normal((15, 4)).tolist()

    def build(count: int) -> Tree:
        found = [
            {"label": LABELS[(count + index) % len(LABELS)], "score": boxes[index][0], "box": boxes[index]}
            for index in range(spread(count, 5, 15))
        ]
        return {**fixed, "detections": found}

    return build


def _optional_keys(fixed: Tree, noise: Noise) -> Callable[[int], Tree]:
    wrist, force = noise.integers(0, 256, (8, 8, 3), np.uint8), noise.standard_normal(6, np.float32)

    def build(count: int) -> Tree:
        tree = dict(fixed)
        if count & 1:
            tree["wrist"] = wrist
        if count & 2:
            tree["force"] = force
        if count & 4:
            tree["operator"] = "teleoperated"
        return tree

    return build


def _integer_keys(fixed: Tree, noise: Noise) -> Callable[[int], Tree]:
    return lambda count: {**fixed, "joints": dict(enumerate(fixed["joints"].values()))}


def _answer(kind: str) -> Callable[[Tree, Noise], Callable[[int], Tree]]:
    return lambda fixed, noise: lambda count: {**fixed, "answer": kind}


FIXED = "fixed"
VARYING: dict[str, Kind] = {
    FIXED: Kind("image, state, text, 1,000 points, 56 floats", _fixed),
    "points": Kind("point cloud of another length each time, 500 to 1,500", _points),
    "eight_sizes": Kind("point clouds of eight lengths in turn", _eight_sizes),
    "text": Kind("instruction with another text each time", _text),
    "floats": Kind("list of 5 to 95 floats", _floats),
    "integer_keys": Kind("dict with integer keys", _integer_keys),
    "text_action": Kind("text of varying length as the action", _answer("text")),
    "rows_action": Kind("array of varying length as the action", _answer("rows")),
    "optional_keys": Kind("three keys that are there or not", _optional_keys, new_structure=True),
    "detections": Kind("5 to 15 detections as dicts", _detections, new_structure=True),
}
assert not set(VARYING) & set(BUILDERS)
