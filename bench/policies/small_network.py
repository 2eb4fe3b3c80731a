"""Convolutional network of a size that a robot's processor can run, for one or several observations at once."""

from typing import Any

import torch

IMAGE = (96, 96, 3)
ACTIONS = (16, 7)


class Policy:
    """Policy that returns `{"actions": float32[16, 7], "number": int}` from an untrained network."""

    def __init__(self, path: object = None, device: object = None) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)  # One processor for the network leaves the others to the clients.
        self._network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 7, 2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 5, 2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(64, 64, 3, 2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(64 * 10 * 10, 1024),
            torch.nn.ReLU(),
            torch.nn.Linear(1024, 1024),
            torch.nn.ReLU(),
            torch.nn.Linear(1024, 16 * 7),
        ).eval()

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        return self.infer_batch([observation])[0]

    def infer_batch(self, observations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        images = torch.stack([observation["image"] for observation in observations])
        actions = self._network(images.permute(0, 3, 1, 2).float() / 255).reshape(-1, *ACTIONS)
        return [
            {"actions": row, "number": observation["number"]}
            for observation, row in zip(observations, actions, strict=True)
        ]
