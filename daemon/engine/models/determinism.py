"""`deterministic = true`: the same observation gives the same bits, whatever was asked before and by whom."""

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
#: What cuBLAS accepts as a workspace that gives the same bits every time; the first is the faster one.
_WORKSPACES = (":4096:8", ":16:8")
_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


def require_determinism() -> None:
    """Make torch refuse what it cannot repeat; before anything starts CUDA, because cuBLAS looks once.

    Raises ModelPackageError for a workspace in the environment that is not repeatable.
    """
    workspace = os.environ.setdefault(_VARIABLE, _WORKSPACES[0])
    if workspace not in _WORKSPACES:
        raise ModelPackageError(
            f"deterministic = true, but {_VARIABLE} is {workspace!r} in the daemon's environment: unset it, or set it to "
            f"{' or '.join(_WORKSPACES)}"
        )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # which algorithm is the fastest is not the same every time
    torch.backends.cudnn.deterministic = True
    seed()


def seed() -> None:
    """Every generator that a policy may draw from, back to the start."""
    torch.manual_seed(SEED)  # of every device
    random.seed(SEED)
    np.random.seed(SEED)


@contextlib.contextmanager
def generators_apart(device: torch.device) -> Iterator[None]:
    """Restore every generator at the end of the block."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


class Deterministic:
    """A model that sees one request at a time, each with the generators at their start.

    A batch of four is another matrix product than four of one, with other roundings; and what is drawn for one request
    moves what is drawn for the next. Both would let a client's neighbours change its actions.
    """

    batches = False

    def __init__(self, model: Model) -> None:
        #: The same model, as it is.
        self.inner = model
        self.takes_numpy = model.takes_numpy
        self.resets = model.resets

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
    """As Deterministic, for a model that keeps the state of each client apart."""

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
    """`model`, so that the same observation gives the same bits."""
    return DeterministicPerClient(model) if isinstance(model, PerClient) else Deterministic(model)
