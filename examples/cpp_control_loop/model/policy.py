"""Chunks of joint velocities that bring six joints to their goal, one row for each millisecond."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

ROWS = 60
PERIOD_S = 0.001


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.rows = torch.arange(ROWS, device=device)
        # The distance that is left shrinks by a factor of e in 0.2 s; row i expects that the rows before it were executed.
        self.gains = 5.0 * torch.exp(-5.0 * PERIOD_S * self.rows)

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        velocities = torch.outer(self.gains, observation["goal"] - observation["joints"])
        # The tick that each row is meant for, so that the robot can check what it executes.
        ticks = (observation["tick"] + self.rows).float()
        return {"actions": torch.cat([velocities, ticks[:, None]], 1)}

    def example_observation(self) -> dict[str, Any]:
        return {"joints": torch.zeros(6), "goal": torch.zeros(6), "tick": 0}
