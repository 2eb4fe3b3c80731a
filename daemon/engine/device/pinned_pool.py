"""Page-locked memory, or what there is instead, and the reason."""

from __future__ import annotations

import logging

import torch

from .interface import Device, PinFailed

log = logging.getLogger(__name__)

#: NVIDIA's driver pins pages itself and counts nothing against RLIMIT_MEMLOCK (kernel-open/nvidia/os-mlock.c).
REMEDY = (
    "free memory of the host; in a sandbox (gVisor), with an IOMMU that is short of room, or on a board without that call "
    "there is nothing to free: `dmesg` shows what the driver says (NVRM)"
)


class PinnedPool:
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
                f"{size} bytes of staging memory cannot be page-locked ({error}): copies to the device take a detour "
                f"through the driver; {REMEDY}"
            )
            return torch.empty(size, dtype=torch.uint8, device="cpu")
        self.pinned_bytes += size
        return memory

    def warn(self, text: str) -> None:
        """Say it once, in the log and in status."""
        if text not in self.warnings:
            log.warning("%s", text)
            self.warnings.append(text)
