"""Page-locked memory, or what there is instead, and the reason."""

from __future__ import annotations

import logging
import resource

import torch

from .interface import Device, PinFailed

log = logging.getLogger(__name__)

REMEDY = (
    "raise the limit of locked memory (LimitMEMLOCK=infinity in the unit, `ulimit -l unlimited`, docker's "
    "--ulimit memlock=-1) or free memory of the host"
)


class HostMemory:
    """Hands out staging memory for one device; where it cannot be page-locked copies are slower, not wrong."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.pinned_bytes = 0
        self.pageable_bytes = 0
        #: What is not as it should be, each said once; for status.
        self.warnings: list[str] = []

    def take(self, size: int) -> torch.Tensor:
        """`size` bytes, page-locked if possible."""
        try:
            memory = self._device.pinned(size)
        except PinFailed as error:
            self.pageable_bytes += size
            self.warn(
                f"{size} bytes of staging memory cannot be page-locked ({error}; {limits()}): copies to the "
                f"device take a detour through the driver; {REMEDY}"
            )
            return torch.empty(size, dtype=torch.uint8)
        self.pinned_bytes += size
        return memory

    def warn(self, text: str) -> None:
        """Say it once, in the log and in status."""
        if text not in self.warnings:
            log.warning("%s", text)
            self.warnings.append(text)


def limits() -> str:
    """What this process may lock."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return f"RLIMIT_MEMLOCK is {_size(soft)}, at most {_size(hard)}"


def _size(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit} bytes"
