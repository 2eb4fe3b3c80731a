"""Observations of robots as a LeRobot policy takes them, and the example that declares them.

Without `joints` an observation has the policy's own entries: arrays `observation.state`, `observation.images.front`. With
`joints` it is what LeRobot's robots give: a number for each joint, and frames by the cameras' names. Either way a frame is
[height, width, channels], uint8 in 0 to 255 or floats in 0 to 1, and an instruction is the text `task`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from shmserve.contract import describe_tree, entry_text
from shmserve.errors import ContractMismatch

from ....packages.lerobot_checkpoint import IMAGES, STATE, Feature
from ....packages.lerobot_options import LerobotOptions

TASK = "task"


class Observations:
    """Makes batches of one, as LeRobot's `prepare_observation_for_inference` does."""

    def __init__(self, options: LerobotOptions, device: torch.device, *, renamed: bool) -> None:
        """Create it; `renamed`: the preprocessor changes the robot's names to those of the policy."""
        self._options = options
        self._device = device
        self._inputs = options.checkpoint.inputs
        self._sizes = options.frame_sizes or {}
        #: The robot's full name of each feature, its name in the batch, and the names under which a robot may send it.
        self._names = options.robot_names
        self._batch_names = self._names if renamed else {name: name for name in self._inputs}

    def shown_name(self, feature: str) -> str:
        """Return the name under which the example has this feature."""
        name = self._names[feature]
        return _short(name) if self._options.joints else name

    def example(self) -> dict[str, Any]:
        """Return an observation as the policy was trained with."""
        found: dict[str, Any] = {}
        for name, feature in self._inputs.items():
            if feature.kind == "VISUAL":
                shape = self._frame_shape(name, feature)
                found[self.shown_name(name)] = np.zeros(shape, np.dtype(self._options.frames))
            elif name == STATE and self._options.joints:
                found |= dict.fromkeys(self._options.joints, 0.0)
            else:
                found[self._names[name]] = np.zeros(feature.shape, np.float32)
        if self._options.uses_task and self._options.task is None:
            found[TASK] = ""
        return found

    def batch(self, observation: Any) -> dict[str, Any]:
        """Return the observation as a batch; raises ContractMismatch naming the entry that is missing or differs."""
        if not isinstance(observation, dict):
            raise ContractMismatch(f"an observation must be a dict of entries, not a {type(observation).__name__}")
        batch = {
            self._batch_names[name]: (
                self._frame(observation, name, feature)
                if feature.kind == "VISUAL"
                else self._numbers(observation, name, feature)
            )
            for name, feature in self._inputs.items()
        }
        batch[TASK] = self._task(observation)
        batch["robot_type"] = self._options.robot_type
        return batch

    def _frame_shape(self, name: str, feature: Feature) -> tuple[int, int, int]:
        channels, height, width = feature.shape
        return (*self._sizes.get(name, (height, width)), channels)

    def _frame(self, observation: dict[str, Any], name: str, feature: Feature) -> torch.Tensor:
        full = self._names[name]
        shown = self.shown_name(name)
        frame = observation.get(full, observation.get(_short(full)))
        if frame is None:
            raise self._missing(shown, observation)
        wanted = self._frame_shape(name, feature)
        fits = isinstance(frame, torch.Tensor) and frame.dim() == 3 and frame.shape[2] == wanted[2]
        if fits and not self._options.resizes:
            fits = tuple(frame.shape) == wanted
        if not fits or not (frame.dtype == torch.uint8 or frame.is_floating_point()):
            size = f"any height and width, {wanted[2]} channels" if self._options.resizes else list(wanted)
            raise ContractMismatch(
                f"{shown}: expected a frame of uint8 or floats, {size}, got {entry_text(describe_tree(frame)[''])}"
            )
        # In the order of channels first, while the numbers are still small.
        planes = frame.permute(2, 0, 1).contiguous().to(self._device)
        return (planes.to(torch.float32) / 255 if frame.dtype == torch.uint8 else planes.to(torch.float32))[None]

    def _numbers(self, observation: dict[str, Any], name: str, feature: Feature) -> torch.Tensor:
        full = self._names[name]
        if full in observation:
            values = torch.as_tensor(observation[full], dtype=torch.float32, device=self._device)
        elif name == STATE and self._options.joints:
            absent = [joint for joint in self._options.joints if joint not in observation]
            if absent:
                raise self._missing(", ".join(absent), observation)
            numbers = [float(observation[joint]) for joint in self._options.joints]
            values = torch.tensor(numbers, dtype=torch.float32, device=self._device)
        else:
            raise self._missing(full, observation)
        if tuple(values.shape) != feature.shape:
            raise ContractMismatch(f"{full}: expected float32{list(feature.shape)}, got shape {list(values.shape)}")
        return values[None]

    def _task(self, observation: dict[str, Any]) -> str:
        task = observation.get(TASK, self._options.task)
        if task is None and not self._options.uses_task:
            return ""
        if task is None:
            raise self._missing(TASK, observation)
        if not isinstance(task, str):
            raise ContractMismatch(f"{TASK}: expected a text, got {type(task).__name__}")
        return task

    def _missing(self, name: str, observation: dict[str, Any]) -> ContractMismatch:
        hint = ""
        if not self._options.joints and STATE in self._inputs and self._names[STATE] not in observation:
            hint = (
                "; a robot that sends a number for each joint needs their names in the order of the training: joints under "
                "[lerobot] in model.toml"
            )
        return ContractMismatch(f"the observation lacks {name} (it has {', '.join(map(str, observation))}){hint}")


def _short(name: str) -> str:
    """Return the name of a camera as LeRobot's robots have it."""
    return name.removeprefix(IMAGES).removeprefix("observation.")
