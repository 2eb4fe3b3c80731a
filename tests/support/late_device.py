"""The engine's `CudaDevice` on late GPUs (tests/gpu/late_cuda.py), and what tests look at."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from shmserve.daemon.engine.device.cuda import CudaDevice
from tests.gpu.late_cuda import install

if TYPE_CHECKING:
    from typing_extensions import Self


class LateDevice(CudaDevice):
    """A device whose GPUs are there until it is closed; `gpus` has what they did, and what they let fail."""

    def __init__(self, **settings: Any) -> None:
        self._undo = contextlib.ExitStack()
        self.gpus = install(self._undo, **settings)
        super().__init__(torch.device("cuda"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._undo.close()
