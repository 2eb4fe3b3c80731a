"""Changes its observation, as normalising policies do."""

from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        pass

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        x = observation["x"]
        x.mul_(2).add_(1)
        observation["more"] = x.sum()
        return observation
