"""Pool of page-locked memory, with pageable memory as a fallback and a warning that gives the reason."""

from __future__ import annotations

import logging

import torch

from .interface import Device, PinFailed

log = logging.getLogger(__name__)

#: NVIDIA's driver pins pages itself and does not count them against RLIMIT_MEMLOCK (kernel-open/nvidia/os-mlock.c).
REMEDY = (
    "free memory of the host; in a sandbox (gVisor), with too little IOMMU space, or on a board without this call "
    "that does not help: `dmesg` shows the driver's messages (NVRM)"
)


class PinnedPool:
    """Allocator of staging memory for one device; if memory cannot be page-locked, copies are slower but correct."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.pinned_bytes = 0
        self.pageable_bytes = 0
        #: Warnings for status, each once.
        self.warnings: list[str] = []

    def take(self, size: int) -> torch.Tensor:
        """Allocate `size` bytes, page-locked if possible."""
        try:
            memory = self._device.pinned(size)
        except PinFailed as error:
            self.pageable_bytes += size
            self.warn(
                f"{size} bytes of staging memory cannot be page-locked ({error}): copies to the device are slower, "
                f"because the driver copies through its own buffer; {REMEDY}"
            )
            return torch.empty(size, dtype=torch.uint8, device="cpu")
        self.pinned_bytes += size
        return memory

    def warn(self, text: str) -> None:
        """Report a warning once, in the log and in status."""
        if text not in self.warnings:
            log.warning("%s", text)
            self.warnings.append(text)
