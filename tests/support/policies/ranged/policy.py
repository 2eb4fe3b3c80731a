"""Gives back what it got, times a gain, beside a list that it keeps for itself."""

from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.own = {"actions": torch.zeros(3), "value": 0.0, "speed": 0.0}

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        if observation["speed"] == 0.5:
            self.own["actions"] = torch.full((3,), 99.0)
            return {**self.own, "kept": bool((self.own["actions"] == 99.0).all())}
        joints = observation["arm"]["joints"]
        return {"actions": joints * observation["gain"], "value": observation["value"], "speed": observation["speed"]}

    def infer_batch(self, observations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.infer(observation) for observation in observations]

    def example_observation(self) -> dict[str, Any]:
        return {"arm": {"joints": torch.zeros(3)}, "speed": 0.0, "gain": 1.0, "value": 0.0}
