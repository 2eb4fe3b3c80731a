"""Steers by a gradient, as real-time chunking does, and changes its observation in other threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Policy:
    def __init__(self, path: Path, device: torch.device) -> None:
        torch.manual_seed(0)
        self._network = torch.nn.Linear(3, 3).to(device)
        self._threads = ThreadPoolExecutor(2)

    def example_observation(self) -> dict[str, Any]:
        return {"x": np.ones(3, np.float32)}

    def infer(self, observation: dict[str, Any]) -> Any:
        given = observation["x"]
        with torch.enable_grad():
            x = given.clone().detach().requires_grad_(True)
            gradient, *_ = torch.autograd.grad((self._network(x) ** 2).sum(), x)
            directly, *_ = torch.autograd.grad((self._network(given) ** 2).sum(), self._network.weight)
            wanted = (self._network(x) ** 2).sum()
        without = self._network(given)
        self._threads.submit(given.add_, 1.0).result()
        given[0] = 7.0
        list(self._threads.map(lambda part: part.mul_(2.0), given.unbind()))
        return {"gradient": gradient, "weight": directly, "wanted": wanted, "needs": without.requires_grad, "x": given}

    def infer_batch(self, observations: list[dict[str, Any]]) -> Any:
        return [self.infer(observation) for observation in observations]
