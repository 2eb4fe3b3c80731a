"""Bitwise reproducible actions for `deterministic = true`, independent of earlier requests and other clients."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from shmserve.errors import ModelPackageError

from .model import Model, PerClient

SEED = 0
#: Workspace settings with which cuBLAS is deterministic; the first is faster.
_WORKSPACES = (":4096:8", ":16:8")
_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


def require_determinism() -> None:
    """Make torch reject operations that are not deterministic; call it before CUDA starts, because cuBLAS reads its setting once.

    Raises ModelPackageError if the environment sets a workspace that is not deterministic.
    """
    workspace = os.environ.setdefault(_VARIABLE, _WORKSPACES[0])
    if workspace not in _WORKSPACES:
        raise ModelPackageError(
            f"deterministic = true, but {_VARIABLE} is {workspace!r} in the daemon's environment: unset it, or set it to "
            f"{' or '.join(_WORKSPACES)}"
        )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # benchmarks do not choose the same algorithm every time
    torch.backends.cudnn.deterministic = True
    seed()


def seed() -> None:
    """Reset every random generator that a policy may draw from."""
    torch.manual_seed(SEED)  # of every device
    random.seed(SEED)
    np.random.seed(SEED)


@contextlib.contextmanager
def generators_apart(device: torch.device) -> Iterator[None]:
    """Restore the random generators after the block."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


class Deterministic:
    """Adapter that runs one request at a time and resets the random generators before each.

    A batch of four uses another matrix product than four single requests, with other rounding errors; and random numbers
    drawn for one request shift those of the next. Either would let other clients change a client's actions.
    """

    batches = False

    def __init__(self, model: Model) -> None:
        #: The model without this adapter.
        self.inner = model
        self.takes_numpy = model.takes_numpy
        self.resets = model.resets
        self.warm = getattr(model, "warm", None)

    def infer(self, observations: list[Any]) -> list[Any]:
        actions = []
        for observation in observations:
            seed()
            actions += self.inner.infer([observation])
        return actions

    def reset(self, client_id: int) -> None:
        seed()
        self.inner.reset(client_id)

    def example_observation(self) -> Any:
        return self.inner.example_observation()

    def metadata(self) -> dict[str, Any]:
        return self.inner.metadata()


class DeterministicPerClient(Deterministic):
    """As Deterministic, for a model that keeps separate state for each client."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._per_client: PerClient = model

    def infer_for(self, observations: list[Any], client_ids: Sequence[int]) -> list[Any]:
        actions = []
        for observation, client_id in zip(observations, client_ids, strict=True):
            seed()
            actions += self._per_client.infer_for([observation], [client_id])
        return actions

    def client_left(self, client_id: int) -> None:
        seed()
        self._per_client.client_left(client_id)


def deterministic(model: Model) -> Model:
    """Wrap `model` so that the same observation always gives the same bits."""
    return DeterministicPerClient(model) if isinstance(model, PerClient) else Deterministic(model)
