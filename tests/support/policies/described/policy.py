"""Says of itself what it takes, with a gymnasium space's infinite bounds, and brings an example."""

from pathlib import Path
from typing import Any

import numpy as np
import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.runs = 0

    def example_observation(self) -> dict[str, Any]:
        return {"instruction": "pick", "state": np.zeros(6, np.float32), "image": np.zeros((480, 640, 3), np.uint8)}

    def metadata(self) -> dict[str, Any]:
        return {
            "low": np.array([-np.inf, 0.0], np.float32),
            "high": [float("inf"), float("nan")],
            "joints": ("base", "elbow"),
            "scale": torch.tensor([0.5, 2.0]),
            "path": Path("weights"),
        }

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        self.runs += 1
        return {"action": torch.zeros(16, 7), "runs": self.runs}
