"""Finds the brightest spot of a picture and says how far to turn so that it comes to the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        pass

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        image = observation["image"]
        height, width, _ = image.shape
        row, column = divmod(int(image[..., 1].argmax()), width)
        return {"pan": float(column - width // 2), "tilt": float(row - height // 2), "frame": observation["frame"]}

    def example_observation(self) -> dict[str, Any]:
        return {"image": torch.zeros(480, 640, 3, dtype=torch.uint8), "frame": 0}
