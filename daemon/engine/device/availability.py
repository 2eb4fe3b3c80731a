"""The device that the operator chose, and whether this machine and this PyTorch have it."""

from __future__ import annotations

import os

import torch

from shmserve.errors import ShmServeError


class DeviceMissing(ShmServeError, RuntimeError):
    """The chosen device is not there; the message says what is, and what to do."""


def check_there(device: torch.device) -> None:
    """Raises DeviceMissing for a CUDA device that cannot be had."""
    if torch.version.cuda is None and torch.version.hip is None:
        raise DeviceMissing(
            f"device {device}: the PyTorch of this installation ({torch.__version__}) is built for the CPU alone: install one "
            "built for CUDA (https://pytorch.org/get-started/locally), or choose device cpu"
        )
    found = torch.cuda.device_count()
    if not found:
        raise DeviceMissing(
            f"device {device}: PyTorch {torch.__version__} finds no GPU: see whether nvidia-smi does, and whether the "
            f"daemon's user may open /dev/nvidia*{_hidden()}; or choose device cpu"
        )
    if (device.index or 0) >= found:
        there = "cuda:0 is" if found == 1 else f"cuda:0 to cuda:{found - 1} are"
        raise DeviceMissing(f"device {device}: there are {found} GPUs here, {there} there{_hidden()}")


def _hidden() -> str:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={chosen!r})"
