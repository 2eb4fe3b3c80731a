"""A two-joint arm in MuJoCo (gymnasium's Reacher-v5) with a camera, rendered off screen."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")  # before MuJoCo is imported; without a GPU, Mesa renders on the CPU

import gymnasium
import numpy as np

STATE, CAMERA = "observation.state", "observation.images.front"
STATE_NUMBERS, TORQUES = 6, 2
SIZE = (96, 96)  # height and width of a frame


class Arm:
    """Observations as a LeRobot policy takes them; the camera sees the target, the state does not have it."""

    def __init__(self, seed: int) -> None:
        self._simulator = gymnasium.make(
            "Reacher-v5", render_mode="rgb_array", height=SIZE[0], width=SIZE[1], max_episode_steps=1_000_000
        )
        self._numbers, _ = self._simulator.reset(seed=seed)

    def observe(self) -> dict[str, Any]:
        # Cosines, sines and speeds of the joints; the numbers between them are of the target.
        state = np.concatenate((self._numbers[:4], self._numbers[6:8])).astype(np.float32)
        return {STATE: state, CAMERA: np.ascontiguousarray(self._simulator.render())}

    def apply(self, torques: Any) -> None:
        self._numbers, *_ = self._simulator.step(np.clip(torques, -1, 1))

    def close(self) -> None:
        self._simulator.close()
