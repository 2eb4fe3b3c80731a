"""Moves each joint a tenth of the way to its goal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.gain = torch.tensor(0.1, device=device)

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {"action": (observation["goal"] - observation["joints"]) * self.gain}

    def example_observation(self) -> dict[str, Any]:
        return {"joints": torch.zeros(6), "goal": torch.zeros(6)}
