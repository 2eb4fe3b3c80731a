"""Takes several observations at once and tells how many there were; a row with `bad` raises, one with `die` ends the engine."""

import os
import time
from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.order: list[str] = []

    def reset(self, client_id: int) -> None:
        self.order.append("reset")

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        return self.infer_batch([observation])[0]

    def infer_batch(self, observations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for observation in observations:
            if gate := observation.get("gate"):
                Path(gate).with_suffix(".entered").touch()
                until = time.monotonic() + 60
                while not Path(gate).exists() and time.monotonic() < until:
                    time.sleep(0.005)
            if observation.get("die"):
                os._exit(3)
            if observation.get("bad"):
                raise ValueError(f"row {observation['row']} is bad")
        self.order += [f"row {observation['row']}" for observation in observations]
        rows = torch.stack([observation["x"] for observation in observations]) * 2
        return [
            {"row": observation["row"], "y": y, "batch": len(observations), "order": self.order[-8:]}
            for observation, y in zip(observations, rows, strict=True)
        ]
