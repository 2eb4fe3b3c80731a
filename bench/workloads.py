"""Observations that the benchmarks send: those of real policies, and three simple ones.

`w1` to `w13` are shapes that openpi, LeRobot, GR00T, ALOHA, OpenVLA and OpenArm users send. The contents are noise
that follows from the name, the same in each run. Before each request a counter is written into the observation and
its sum is known beforehand, so a reply that belongs to another request, or to bytes that were torn or lost, does not
pass.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bench.peers.policy import CHECK_MASK, actions_for, checksum

Array = npt.NDArray[Any]
INSTRUCTION = "pick up the red cup on the table"


class WrongReply(Exception):
    """Error for a reply that does not belong to its request."""


class Asked(Protocol):
    """Interface of what a client sends: an observation for each request, and the check of its reply."""

    @property
    def name(self) -> str: ...

    @property
    def observation(self) -> dict[str, Any]: ...

    @property
    def array_bytes(self) -> int: ...

    def stamp(self, count: int) -> None:
        """Make `observation` that of request `count`."""

    def verify(self, reply: dict[str, Any], count: int) -> None:
        """Raise WrongReply unless this is the complete reply to request `count`."""


@dataclass(frozen=True)
class Workload:
    """Observation that is sent repeatedly."""

    name: str
    observation: dict[str, Any]
    array_bytes: int
    _word: npt.NDArray[np.uint64]
    _base: int

    def stamp(self, count: int) -> None:
        """Write `count`, the number of the request, over the first 8 bytes of the smallest array."""
        self._word[0] = count

    def verify(self, reply: dict[str, Any], count: int) -> None:
        """Raise WrongReply unless this is the complete reply to request `count`."""
        check = (self._base + count) & CHECK_MASK
        if reply["check"] != check:
            raise WrongReply(f"{self.name}: request {count} has the sum {check}, the reply says {reply['check']}")
        actions, expected = reply["actions"], actions_for(check)
        if actions.dtype != expected.dtype or not np.array_equal(actions, expected):
            raise WrongReply(f"{self.name}: the actions of request {count} are not those of its sum {check}")


def workload(name: str) -> Workload:
    """Build a workload by name.

    >>> [workload(name).array_bytes for name in ("vga", "fullhd", "w1", "w6", "w7", "w10")]
    [921624, 6220824, 55312, 602224, 921772, 6912064]
    """
    if name not in BUILDERS:
        raise ValueError(f"no workload {name!r}; there are {', '.join(BUILDERS)}")
    observation = BUILDERS[name](np.random.default_rng(zlib.crc32(name.encode())))
    arrays = list(_arrays(observation))
    smallest = min((array for array in arrays if array.flags.c_contiguous), key=lambda array: array.nbytes)
    word = smallest.reshape(-1).view(np.uint8)[:8].view(np.uint64)
    word[0] = 0
    return Workload(name, observation, sum(array.nbytes for array in arrays), word, checksum(observation))


def _arrays(tree: Any) -> Iterator[Array]:
    if isinstance(tree, np.ndarray):
        yield tree
    elif isinstance(tree, dict):
        for leaf in tree.values():
            yield from _arrays(leaf)


Noise = np.random.Generator


def _image(noise: Noise, *shape: int) -> Array:
    return noise.integers(0, 256, shape, np.uint8)


def _state(noise: Noise, *shape: int) -> Array:
    return noise.standard_normal(shape, np.float32)


def _one_image(height: int, width: int) -> Callable[[Noise], dict[str, Any]]:
    return lambda noise: {
        "image": _image(noise, height, width, 3),
        "state": _state(noise, 6),
        "instruction": INSTRUCTION,
    }


def _cameras(noise: Noise, *shapes: tuple[int, int]) -> dict[str, Array]:
    return {f"camera_{index}": _image(noise, height, width, 3) for index, (height, width) in enumerate(shapes)}


def _droid(noise: Noise) -> dict[str, Any]:
    return {
        "observation/exterior_image_1_left": _image(noise, 224, 224, 3),
        "observation/wrist_image_left": _image(noise, 224, 224, 3),
        "observation/state": _state(noise, 8),
        "prompt": INSTRUCTION,
    }


def _gr00t(noise: Noise, cameras: int, height: int, width: int, joints: int) -> dict[str, Any]:
    return {
        "video": {f"view_{index}": _image(noise, 1, 1, height, width, 3) for index in range(cameras)},
        "state": {"joints": _state(noise, 1, 1, joints)},
        "language": {"annotation.human.task_description": [[INSTRUCTION]]},
    }


def _aloha(noise: Noise) -> dict[str, Any]:
    # openpi's ALOHA robots send CHW: views of the cameras' HWC frames, not contiguous in any order.
    names = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    return {
        "images": {name: _image(noise, 224, 224, 3).transpose(2, 0, 1) for name in names},
        "state": noise.standard_normal(14),
        "prompt": INSTRUCTION,
    }


def _lerobot(noise: Noise, joints: int, *shapes: tuple[int, int]) -> dict[str, Any]:
    cameras = {f"observation.images.{name}": image for name, image in _cameras(noise, *shapes).items()}
    state = {"observation.state": _state(noise, joints)} if joints else {}
    return {**cameras, **state, "task": INSTRUCTION}


VGA, HD, FULL_HD = (480, 640), (720, 1280), (1080, 1920)

BUILDERS: dict[str, Callable[[Noise], dict[str, Any]]] = {
    "tiny": _one_image(8, 8),
    "vga": _one_image(*VGA),
    "fullhd": _one_image(*FULL_HD),
    "w1": lambda noise: {"image": _image(noise, 2, 96, 96, 3), "state": _state(noise, 2, 2)},  # PushT, history of 2
    "w2": lambda noise: {"image": _image(noise, 256, 256, 3), "instruction": INSTRUCTION},  # OpenVLA
    "w3": _droid,  # pi0 and pi0.5, DROID and LIBERO
    # w4 and w7: GR00T; w5: pi0; w8: SO-101, LeRobot's default; w9: ACT on ALOHA; w10: OpenArm.
    "w4": lambda noise: _gr00t(noise, 2, 256, 256, 7),
    "w5": lambda noise: {**_cameras(noise, *[(224, 224)] * 3), "state": _state(noise, 32), "prompt": INSTRUCTION},
    "w6": _aloha,
    "w7": lambda noise: _gr00t(noise, 1, *VGA, 43),
    "w8": lambda noise: _lerobot(noise, 6, VGA, VGA),
    "w9": lambda noise: _lerobot(noise, 14, VGA, VGA, VGA, VGA),
    "w10": lambda noise: {**_cameras(noise, *[(600, 960)] * 4), "state": _state(noise, 16)},
    "w11": lambda noise: _lerobot(noise, 0, VGA, VGA, FULL_HD),
    "w12": lambda noise: _lerobot(noise, 0, HD, HD, HD),
    "w13": lambda noise: _lerobot(noise, 0, FULL_HD, FULL_HD),
}
