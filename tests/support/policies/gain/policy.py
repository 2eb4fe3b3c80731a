"""y = k * x; what k is, and which of its requests it does not survive, stands in settings.json beside this file."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.settings: dict[str, Any] = json.loads((path / "settings.json").read_text())
        self.requests = 0
        if "loads_behind" in self.settings:
            _wait_at(self.settings["loads_behind"])

    def example_observation(self) -> dict[str, Any]:
        return {"x": np.arange(3), "robot": "nobody"}

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        settings = self.settings
        if observation["robot"] == "nobody":  # the warm-up
            if "warms_up_behind" in settings:
                _wait_at(settings["warms_up_behind"])
        else:
            self.requests += 1
            if self.requests == settings.get("dies_at"):
                os._exit(3)
            if self.requests % 10 < settings.get("fails_of_ten", 0):
                raise ValueError("the gripper is in two places at once")
        if "gate" in observation:
            _wait_at(observation["gate"])
        y = observation["x"] * settings["k"]
        if "rows" in observation:
            y = y.expand(observation["rows"], -1).contiguous()
        return {"y": y, "k": settings["k"]}


def _wait_at(gate: str) -> None:
    Path(gate).with_suffix(".entered").touch()
    until = time.monotonic() + 60
    while not Path(gate).exists() and time.monotonic() < until:
        time.sleep(0.005)
