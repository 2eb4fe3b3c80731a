"""Points a camera at the brightest thing it sees: two joints, pan and tilt, and an image in; their next positions out."""

from pathlib import Path
from typing import Any

import numpy as np
import torch


class Policy:
    def __init__(self, path: Path, device: torch.device, gain: float = 0.2) -> None:
        self.gain = gain

    def example_observation(self) -> dict[str, Any]:
        return {"image": np.full((48, 64, 3), 128, np.uint8), "positions": np.zeros(2)}

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        brightness = observation["image"].to(torch.float64).mean(2)
        above = (brightness - brightness.mean()).clamp(min=0)
        weights = above / above.sum().clamp(min=1e-9)
        down = torch.linspace(-1, 1, brightness.shape[0], dtype=torch.float64, device=weights.device)
        right = torch.linspace(-1, 1, brightness.shape[1], dtype=torch.float64, device=weights.device)
        # Pan turns left, tilt turns up: both against the image's axes.
        off = torch.stack([(weights.sum(0) * right).sum(), (weights.sum(1) * down).sum()])
        return {"positions": observation["positions"] - self.gain * off}
