"""A CartPole seen through its camera: full-size rendered frames, drawn without a display."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

# Before pygame is imported: draw into memory, and say nothing on the robot's terminal.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import gymnasium

FRAME_SHAPE = (400, 600, 3)

Frames = npt.NDArray[np.uint8]


class CameraCartPole:
    """gymnasium's CartPole-v1 behind a camera that remembers its last `history` frames, oldest first.

    `frames` is one uint8[history,400,600,3] for the whole life of the camera, overwritten by each `look`.
    """

    def __init__(self, history: int) -> None:
        self.frames: Frames = np.zeros((history, *FRAME_SHAPE), dtype=np.uint8)
        self._world: Any = gymnasium.make("CartPole-v1", render_mode="rgb_array")
        self._fresh = True

    @property
    def state(self) -> npt.NDArray[np.float64]:
        """The true state: position m, velocity m/s, angle rad, rate rad/s. For teaching only."""
        state: npt.NDArray[np.float64] = np.asarray(self._world.unwrapped.state, dtype=np.float64)
        return state

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Begin an episode; the next look fills the whole history with its first frame."""
        self._world.reset(seed=seed, options=options)
        self._fresh = True

    def place(self, state: npt.NDArray[np.float64]) -> None:
        """Put the world into this state, before the first look of an episode. For teaching only."""
        self._world.unwrapped.state = state

    def look(self) -> Frames:
        """Take a picture of the world as it is now and return the history that ends with it."""
        frame: Any = self._world.render()
        if self._fresh:
            self.frames[:] = frame
            self._fresh = False
        else:
            for index in range(len(self.frames) - 1):
                self.frames[index] = self.frames[index + 1]
            self.frames[-1] = frame
        return self.frames

    def push(self, action: int) -> tuple[float, bool]:
        """Push the cart left (0) or right (1) for one period of 20 ms; the reward, and whether the episode is over."""
        _, reward, fell, timed_out, _ = self._world.step(action)
        return float(reward), fell or timed_out

    def close(self) -> None:
        self._world.close()
