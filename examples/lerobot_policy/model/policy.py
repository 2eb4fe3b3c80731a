"""Serves a LeRobot checkpoint (ACT, Diffusion, SmolVLA, pi0 ...) with its own processors, as LeRobot 0.6 runs it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors

_IMAGES = "observation.images."


class Policy:
    """An observation is what LeRobot's `robot.get_observation()` gives, and "task".

    `joints` are the robot's names for the state and for an action, in the order of the training data. `answer` is
    "chunk" (`predict_action_chunk`: {"actions": float32[steps, joints]}, no state) or "action" (`select_action`:
    {"action": float32[joints]}, from a queue that the policy keeps: say stateful = true, one robot for each service).
    """

    def __init__(
        self,
        path: Path,
        device: torch.device,
        joints: list[str],
        checkpoint: str = "checkpoint",
        answer: str = "chunk",
    ) -> None:
        if answer not in ("chunk", "action"):
            raise ValueError(f"answer = {answer!r}: 'chunk' or 'action'")
        where = str(path / checkpoint)
        config = PreTrainedConfig.from_pretrained(where)
        config.device = str(device)
        self.policy = get_policy_class(config.type).from_pretrained(where, config=config)
        moved = {"device_processor": {"device": str(device)}}
        self.before, self.after = make_pre_post_processors(
            config, pretrained_path=where, preprocessor_overrides=moved, postprocessor_overrides=moved
        )
        _check_statistics(where, self.before, self.after)
        self.device = device
        self.joints = joints
        self.answer = answer
        #: The checkpoint's names of its cameras, and the robot's.
        self.cameras = {name: name.removeprefix(_IMAGES) for name in config.image_features}
        self.shapes = {name: feature.shape for name, feature in config.image_features.items()}

    def example_observation(self) -> dict[str, Any]:
        """What the checkpoint was trained on; a robot with other cameras is refused before it moves."""
        frames = {
            self.cameras[name]: np.zeros((height, width, channels), np.uint8)
            for name, (channels, height, width) in self.shapes.items()
        }
        return {**dict.fromkeys(self.joints, 0.0), **frames, "task": ""}

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        batch = self.before(self._batch(observation))
        if self.answer == "action":
            return {"action": self.after(self.policy.select_action(batch))[0]}
        chunk = self.policy.predict_action_chunk(batch)
        # LeRobot's processors take one action, [1, joints], at a time.
        return {"actions": torch.cat([self.after(chunk[:, row]) for row in range(chunk.shape[1])])}

    def reset(self, client_id: int) -> None:
        for part in (self.policy, self.before, self.after):
            part.reset()

    def _batch(self, observation: dict[str, Any]) -> dict[str, Any]:
        """As lerobot.policies.utils.prepare_observation_for_inference makes it."""
        state = torch.tensor([[float(observation[joint]) for joint in self.joints]], device=self.device)
        batch: dict[str, Any] = {"observation.state": state, "task": observation.get("task", ""), "robot_type": ""}
        for name, camera in self.cameras.items():
            frame = observation[camera]
            frame = frame.to(torch.float32) / 255 if frame.dtype == torch.uint8 else frame.to(torch.float32)
            batch[name] = frame.permute(2, 0, 1).contiguous()[None]
        return batch


def _check_statistics(where: str, *pipelines: Any) -> None:
    """Refuse a checkpoint that lacks statistics: LeRobot would pass such features on as they are, without a word.

    Raises ValueError naming the feature.
    """
    for step in [step for pipeline in pipelines for step in pipeline.steps]:
        modes = getattr(step, "norm_map", None) or {}  # of the steps that normalise, and of no other
        chosen = getattr(step, "normalize_observation_keys", None)
        for name, feature in step.features.items() if modes else ():
            kind, mode = (
                getattr(value, "value", value) for value in (feature.type, modes.get(feature.type, "IDENTITY"))
            )
            if mode == "IDENTITY" or (kind != "ACTION" and chosen is not None and name not in chosen):
                continue
            if ("action" if kind == "ACTION" else name) not in (step.stats or {}):
                raise ValueError(
                    f"{where}: {name} is normalised ({mode}), and the checkpoint has no statistics for it: the robot would "
                    "move by numbers of another scale. Save the checkpoint with its processors, or migrate it with "
                    "lerobot.processor.migrate_policy_normalization"
                )
