"""A policy for openpi's server: it moves seven joints to the pose that the camera shows. Nothing here knows shmserve."""

from typing import Any

import numpy as np
from openpi_client import base_policy as _base_policy


class ReachPolicy(_base_policy.BasePolicy):  # type: ignore[misc]
    def __init__(self, action_horizon: int, max_step: float) -> None:
        self._action_horizon = action_horizon
        self._max_step = max_step

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        joints = obs["observation/joint_position"]
        # Seven bars side by side, each as bright as its joint is to be bent: 0 for -1.5 rad, 255 for 1.5 rad.
        bars = np.array_split(obs["observation/exterior_image_1_left"][:, :, 0], len(joints), axis=1)
        goal = np.array([bar.mean() for bar in bars]) / 255 * 3 - 1.5
        steps = np.arange(1, self._action_horizon + 1)[:, None]
        return {"actions": joints + np.clip(goal - joints, -self._max_step * steps, self._max_step * steps)}

    @property
    def metadata(self) -> dict[str, Any]:
        return {"reset_pose": [0.0, -1.2, 1.2, 0.0, 0.0, 0.0, 0.0]}
