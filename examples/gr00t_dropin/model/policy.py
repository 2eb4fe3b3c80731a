"""A policy for GR00T's server: get_action(observation, options) -> (action, info). Nothing here knows shmserve."""

from dataclasses import dataclass
from typing import Any

import numpy as np

HORIZON = 16


@dataclass
class ModalityConfig:
    delta_indices: list[int]
    modality_keys: list[str]


class ReachPolicy:
    """Moves an arm to the pose that the camera shows; a subclass of gr00t's BasePolicy where that is installed."""

    def __init__(self, embodiment_tag: str, device: str) -> None:
        self.embodiment_tag = embodiment_tag
        self.device = device
        self.episode = 0

    def get_modality_config(self) -> dict[str, ModalityConfig]:
        return {
            "video": ModalityConfig([0], ["front"]),
            "state": ModalityConfig([0], ["single_arm"]),
            "language": ModalityConfig([0], ["annotation.human.task_description"]),
            "action": ModalityConfig(list(range(HORIZON)), ["single_arm"]),
        }

    def get_action(
        self, observation: dict[str, Any], options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        joints = observation["state"]["single_arm"]  # (B, 1, joints)
        image = observation["video"]["front"][:, 0, :, :, 0]  # (B, H, W)
        bars = np.array_split(image, joints.shape[2], axis=2)
        goal = np.stack([bar.mean(axis=(1, 2)) for bar in bars], axis=1)[:, None] / 255 * 3 - 1.5
        reach = (options or {}).get("max_step", 0.05) * np.arange(1, HORIZON + 1)[None, :, None]
        action = joints + np.clip(goal - joints, -reach, reach)
        return {"single_arm": action.astype(np.float32)}, {"episode": self.episode}

    def reset(self, options: dict[str, Any] | None = None) -> dict[str, Any]:
        self.episode += 1
        return {"episode": self.episode}
