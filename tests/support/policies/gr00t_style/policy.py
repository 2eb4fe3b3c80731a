"""As a policy for GR00T's server is written: get_action(observation, options) -> (action, info)."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

HORIZON = 16


class ActionRepresentation(Enum):
    RELATIVE = "relative"
    ABSOLUTE = "absolute"


@dataclass
class ActionConfig:
    rep: ActionRepresentation


@dataclass
class ModalityConfig:
    delta_indices: list[int]
    modality_keys: list[str]
    action_configs: list[ActionConfig] | None = None


class Policy:
    def __init__(self, embodiment_tag: str, device: str, strict: bool = True) -> None:
        self.embodiment_tag = embodiment_tag
        self.device = device
        self.episode = 0
        self.calls = 0

    def get_modality_config(self) -> dict[str, ModalityConfig]:
        return {
            "video": ModalityConfig([0], ["front"]),
            "state": ModalityConfig([0], ["single_arm", "gripper"]),
            "language": ModalityConfig([0], ["annotation.human.task_description"]),
            "action": ModalityConfig(
                list(range(HORIZON)), ["single_arm"], [ActionConfig(ActionRepresentation.ABSOLUTE)]
            ),
        }

    def get_action(
        self, observation: dict[str, Any], options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if options and options.get("fail"):
            raise ValueError("Language batch item must be a string")
        self.calls += 1
        arm = observation["state"]["single_arm"]
        frame = observation["video"]["front"]
        gain = (options or {}).get("gain", 1.0)
        info = {
            "types": [type(arm).__name__, type(frame).__name__],
            "frame": list(frame.shape),
            "text": observation["language"]["annotation.human.task_description"],
            "options": options,
            "episode": self.episode,
            "embodiment": self.embodiment_tag,
        }
        return {"single_arm": np.repeat(arm, HORIZON, axis=1) * np.float32(gain)}, info

    def reset(self, options: dict[str, Any] | None = None) -> dict[str, Any]:
        self.episode = (options or {}).get("episode_index", self.episode + 1)
        return {"episode_index": self.episode}

    @property
    def endpoints(self) -> dict[str, Any]:
        return {"count_calls": lambda since=0: {"calls": self.calls - since}}
