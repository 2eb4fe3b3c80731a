"""A model for an engine on the late GPU, and failures that it can be told to have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fuzz.echo_model import EchoModel
from tests.support.device_engine import DeviceEngine

#: How torch and CUDA's libraries say that there is no memory.
SHORT: dict[str, Callable[[], Exception]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."),
    "runtime": lambda: RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` ..."),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cudnn": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "driver": lambda: RuntimeError("Triton Error [CUDA]: out of memory"),
}


class Model(EchoModel):
    """Doubles `x` on the device; does something else if a test says so."""

    batches = True

    def __init__(self) -> None:
        self.answer: Callable[[list[Any]], list[Any]] = self.double

    def infer(self, observations: list[Any]) -> list[Any]:
        return self.answer(observations)

    @staticmethod
    def double(observations: list[Any]) -> list[Any]:
        return [{"y": observation["x"] * 2} for observation in observations]


Made = Callable[..., DeviceEngine]
#: Makes an engine whose recorded policy has the given line; with settings of the late GPU.
Record = Callable[..., DeviceEngine]


def model(engine: DeviceEngine) -> Model:
    found = engine.serving._model
    assert isinstance(found, Model)
    return found


def x(value: float, size: int = 100) -> dict[str, Any]:
    return {"x": np.full(size, value, np.float32)}


def assert_serves(engine: DeviceEngine) -> None:
    """Two batches, one for each arena."""
    for turn in range(2):
        sent = [client.submit(x(turn + row)) for row, client in enumerate(engine.clients)]
        engine.run()
        for row, (client, sequence) in enumerate(zip(engine.clients, sent, strict=True)):
            np.testing.assert_array_equal(client.reply(sequence)["y"], np.full(100, 2.0 * (turn + row)))
