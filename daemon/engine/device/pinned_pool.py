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


def block_bytes(size: int) -> int:
    """Return the bytes that torch page-locks for a request of this size: its allocator has powers of two alone.

    >>> [block_bytes(size) for size in (1, 4096, 4097)]
    [1, 4096, 8192]
    """
    return 1 << max(0, size - 1).bit_length()


class PinnedPool:
    """Allocator of staging memory for one device; if memory cannot be page-locked, copies are slower but correct."""

    def __init__(self, device: Device) -> None:
        self._device = device
        #: By address: the bytes in use.
        self._pinned: dict[int, int] = {}
        self._pageable: dict[int, int] = {}
        #: Warnings for status, each once.
        self.warnings: list[str] = []

    @property
    def pinned_bytes(self) -> int:
        return sum(self._pinned.values())

    @property
    def pageable_bytes(self) -> int:
        return sum(self._pageable.values())

    def take(self, size: int) -> torch.Tensor:
        """Allocate a whole block of at least `size` bytes, page-locked if possible."""
        size = block_bytes(size)
        try:
            memory = self._device.pinned(size)
        except PinFailed as error:
            self.warn(
                f"{size} bytes of staging memory cannot be page-locked ({error}): copies to the device are slower, "
                f"because the driver copies through its own buffer; {REMEDY}"
            )
            memory = torch.empty(size, dtype=torch.uint8, device="cpu")
            self._pageable[memory.data_ptr()] = size
            return memory
        self._pinned[memory.data_ptr()] = size
        return memory

    def forget(self, memory: torch.Tensor) -> None:
        """Stop counting memory of `take`, whose user drops its references and then calls `trim`."""
        for taken in (self._pinned, self._pageable):
            taken.pop(memory.data_ptr(), None)

    def trim(self) -> None:
        """Unlock the blocks that nothing uses any more; torch would keep them."""
        self._device.give_back_pinned()

    def warn(self, text: str) -> None:
        """Report a warning once, in the log and in status."""
        if text not in self.warnings:
            log.warning("%s", text)
            self.warnings.append(text)
