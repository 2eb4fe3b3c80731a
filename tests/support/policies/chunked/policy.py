"""Gives chunks whose rows say which observation, which row and which model they are of."""

import os
import time
from pathlib import Path
from typing import Any

import torch

ROWS = 16
MARK = 1.0


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.resets = 0

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        if observation.get("die"):
            os._exit(3)
        if observation.get("fail"):
            raise LookupError("no such joint")
        if "gate" in observation:
            while not Path(observation["gate"]).exists():
                time.sleep(0.002)
        rows = torch.arange(ROWS, dtype=torch.float32)
        step = torch.full_like(rows, float(observation["step"]))
        actions = torch.stack([step, rows, torch.full_like(rows, MARK), torch.full_like(rows, float(self.resets))], 1)
        return {"actions": actions, "note": "rows are (step, row, mark, resets)"}

    def reset(self, client_id: int) -> None:
        self.resets += 1

    def example_observation(self) -> dict[str, Any]:
        return {"step": 0}
