"""Registration of clients' request segments with CUDA, so that the device copies directly from them.

The engine's own mapping of the requests is read-only, and most GPUs cannot lock such a mapping
(cudaDevAttrHostRegisterReadOnlySupported is 0). The device therefore gets a second, writable mapping, which is
never written to.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import torch

from shmserve.layout import Geometry, slot_of

from .interface import Device, PinFailed
from .pinned_pool import REMEDY, PinnedPool


class Registrar:
    """Registers channels with slots above the threshold, and stops after the first failure."""

    def __init__(self, device: Device, host: PinnedPool, threshold: int | None) -> None:
        """Create it; requests of at least `threshold` bytes of payload are copied directly, with None no channel is registered."""
        self._device = device
        self._host = host
        self.threshold = threshold
        self.channels = 0
        self.bytes = 0

    def open(self, requests: int, geometry: Geometry) -> RegisteredRequests | None:
        """Register the segment behind the descriptor, which the caller keeps; None if it is below the threshold, or on failure."""
        if self.threshold is None or geometry.payload_bytes < self.threshold:
            return None
        registered = None
        try:
            registered = RegisteredRequests(requests, geometry, self._device, self)
            registered.register()
        except (PinFailed, OSError) as error:
            if registered is not None:
                registered.close()
            # If the host refuses one segment, it refuses later ones as well; so do limits once they are reached.
            self.threshold = None
            self._host.warn(
                f"the requests of a client ({geometry.segment_bytes} bytes) cannot be registered with the device ({error}): "
                f"large observations need an additional copy on the host; {REMEDY}"
            )
            return None
        return registered


class RegisteredRequests:
    """One generation of one client's request segment."""

    def __init__(self, requests: int, geometry: Geometry, device: Device, registrar: Registrar) -> None:
        self._mapped: mmap.mmap | None = mmap.mmap(
            requests, geometry.segment_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
        self._geometry = geometry
        self._device = device
        self._registrar = registrar
        memory = torch.from_numpy(np.frombuffer(self._mapped, np.uint8))
        self._address = memory.data_ptr()
        self._registered = False
        self._copied_from = False
        self._payloads = [
            memory[start : start + geometry.payload_bytes]
            for start in (geometry.payload_offset(slot) for slot in range(geometry.slots))
        ]

    def register(self) -> None:
        """Register the whole segment at once; raises PinFailed."""
        self._device.register(self._address, self._geometry.segment_bytes)
        self._registered = True
        self._registrar.channels += 1
        self._registrar.bytes += self._geometry.segment_bytes

    def payload(self, sequence: int) -> torch.Tensor:
        """Return the payload bytes of the slot that `sequence` uses."""
        self._copied_from = True
        return self._payloads[slot_of(sequence)]

    def close(self) -> None:
        """Wait for copies from the segment, unregister it, then unmap it; may be called twice."""
        if self._registered:
            # ORDER: before the memory is unmapped, or the driver keeps pages that no longer belong to this address; and
            # after the copies, which the engine awaits before it answers a request, but not if the client has left.
            self._registered = False
            self._wait_for_copies()
            self._device.unregister(self._address)
            self._registrar.channels -= 1
            self._registrar.bytes -= self._geometry.segment_bytes
        self._payloads = []
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            with contextlib.suppress(BufferError):  # a tensor still uses it, and unmaps it when it is freed
                mapped.close()

    def _wait_for_copies(self) -> None:
        if not self._copied_from:
            return
        with contextlib.suppress(RuntimeError):  # raised by a lost device, which no longer copies
            for ahead in (False, True):
                event = self._device.event()
                self._device.record(event, ahead=ahead)
                event.synchronize()
