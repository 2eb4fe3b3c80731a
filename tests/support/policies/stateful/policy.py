"""Adds up what it gets until it is reset; may be told to die, but only the first time."""

import os
from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.total = 0

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        if observation.get("die"):
            os._exit(3)
        self.total += observation["add"]
        return {"total": self.total}

    def reset(self, client_id: int) -> None:
        self.total = 0
