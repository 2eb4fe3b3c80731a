"""Plans the way of a point past an obstacle, left or right of it, and stays with the plan that the robot is following.

A plan is sampled as a diffusion or flow policy does it: it begins as noise and is refined in a few steps. Both sides
of the obstacle are equally good, so a plan for itself takes either. Real-time chunking decides: the rows that the robot
executes before this plan is used are fixed, the rows after them count less and less, and the plan grows around them.
"""

from pathlib import Path
from typing import Any

import torch

ROWS = 20
STEPS = 8
SPEED = 0.04  # in each row
WIDTH, DISTANCE = 0.5, 0.6  # of the way around the obstacle at (0, 0)


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(7)
        self.forward = SPEED * torch.arange(1, ROWS + 1, device=device)

    def example_observation(self) -> dict[str, Any]:
        """What the robot sends. The entries of real-time chunking need not be here, and are no part of the contract."""
        return {"position": torch.tensor([-1.0, 0.0])}

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        kept, weights = self._continued(observation)
        ahead = observation["position"][0] + self.forward
        plan = torch.randn(ROWS, 2, generator=self.generator).to(self.device)
        for step in range(STEPS):
            plan = weights * kept + (1 - weights) * plan
            plan = plan + (self._refined(plan, ahead) - plan) / (STEPS - step)
        return {"actions": weights * kept + (1 - weights) * plan}

    def _refined(self, plan: torch.Tensor, ahead: torch.Tensor) -> torch.Tensor:
        """Return the whole plan of which `plan` is a noisy one. A trained network would be here."""
        around = DISTANCE * torch.exp(-((ahead / WIDTH) ** 2))
        side = torch.where((plan[:, 1] * around).sum() < 0, -1.0, 1.0)
        return torch.stack([ahead, side * around], 1)

    def _continued(self, observation: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows to stay with, float32[ROWS, 2], and how much each counts, float32[ROWS, 1], from 0 to 1."""
        kept, weights = torch.zeros(ROWS, 2, device=self.device), torch.zeros(ROWS, 1, device=self.device)
        left_over = observation.get("prev_chunk_left_over")  # row 0 is for the time of this observation
        if left_over is not None and len(left_over):
            count = min(len(left_over), ROWS)
            delay = min(observation["inference_delay"], count)
            kept[:count] = left_over[:count]
            weights[:delay] = 1  # the robot executes these, whatever this plan says
            fading = torch.arange(count - delay, 0, -1, device=self.device) / (count - delay + 1)
            weights[delay:count, 0] = fading
        return kept, weights
