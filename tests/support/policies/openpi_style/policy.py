"""As a policy for openpi's server is written: its constructor its own, numpy in and out, metadata as a property."""

import time
from typing import Any

import numpy as np


class Policy:
    def __init__(self, *, horizon: int, checkpoint: str, pytorch_device: str = "cpu", reset_pose: list[float]) -> None:
        self._horizon = horizon
        with open(checkpoint) as file:
            self._gain = float(file.read())
        self._device = pytorch_device
        self._metadata = {"reset_pose": reset_pose}
        self._calls = 0
        self._resets = 0

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        if obs.get("prompt") == "fail":
            raise KeyError("observation/wrist_image_left")
        image = obs["observation/exterior_image_1_left"]
        joints = obs["observation/joint_position"]
        kinds = {key: type(value).__name__ for key, value in obs.items()}
        steps = np.arange(self._horizon, dtype=np.float64)[:, None]
        actions = np.broadcast_to(joints.astype(np.float64), (self._horizon, joints.size)) + self._gain * steps
        self._calls += 1
        return {
            "state": np.broadcast_to(joints, (self._horizon, joints.size)).copy(),
            "actions": actions,
            "seen": {
                "kinds": kinds,
                "prompt": obs.get("prompt"),
                "brightness": float(image.mean()),
                "image_shape": list(image.shape),
                "image_owns_its_memory": bool(image.flags.owndata),
                "device": self._device,
                "calls": self._calls,
                "resets": self._resets,
            },
            "policy_timing": {"infer_ms": np.float64((time.monotonic() - began) * 1000)},
        }

    def reset(self) -> None:
        self._resets += 1

    @property
    def metadata(self) -> dict[str, Any]:
        return self._metadata
