"""One policy for all robots: a running mean for each of them, and one call for whatever waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        self.means: dict[int, torch.Tensor] = {}

    def infer(self, observation: dict[str, Any], client_id: int) -> dict[str, Any]:
        (action,) = self.infer_batch([observation], [client_id])
        return action

    def infer_batch(self, observations: list[dict[str, Any]], client_ids: list[int]) -> list[dict[str, Any]]:
        actions = []
        for observation, client_id in zip(observations, client_ids, strict=True):
            state = observation["state"]
            # Each robot's own: requests of one batch may be of several robots, or several of one.
            self.means[client_id] = 0.9 * self.means.get(client_id, state) + 0.1 * state
            actions.append({"action": self.means[client_id]})
        return actions

    def reset(self, client_id: int) -> None:
        self.means.pop(client_id, None)

    def client_left(self, client_id: int) -> None:
        self.means.pop(client_id, None)  # the next robot may get this id

    def example_observation(self) -> dict[str, Any]:
        return {"state": torch.zeros(7)}
