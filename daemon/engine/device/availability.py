"""Availability of the operator's device on this host and in this PyTorch."""

from __future__ import annotations

import os

import torch

from shmserve.errors import ShmServeError


class DeviceMissing(ShmServeError, RuntimeError):
    """The device is not available; the message gives the available ones and the remedy."""


def check_there(device: torch.device) -> None:
    """Raise DeviceMissing unless the CUDA device is available."""
    if torch.version.cuda is None and torch.version.hip is None:
        raise DeviceMissing(
            f"device {device}: the PyTorch of this installation ({torch.__version__}) is built for the CPU only: install one "
            "built for CUDA (https://pytorch.org/get-started/locally), or choose device cpu"
        )
    found = torch.cuda.device_count()
    if not found:
        raise DeviceMissing(
            f"device {device}: PyTorch {torch.__version__} finds no GPU: check that nvidia-smi lists one, and that the "
            f"daemon's user may open /dev/nvidia*{_hidden()}; or choose device cpu"
        )
    if (device.index or 0) >= found:
        there = "cuda:0 is" if found == 1 else f"cuda:0 to cuda:{found - 1} are"
        raise DeviceMissing(f"device {device}: the host has {found} GPU(s), only {there} available{_hidden()}")


def _hidden() -> str:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if chosen is None else f" (CUDA_VISIBLE_DEVICES={chosen!r})"
