"""Registration of clients' request segments with CUDA, so that the device copies directly from them.

The engine's own mapping of the requests is read-only, and most GPUs cannot lock such a mapping
(cudaDevAttrHostRegisterReadOnlySupported is 0). The device therefore gets a second, writable mapping, which is
never written to.

Locking takes about a millisecond for each MiB, so a second thread registers and unregisters, in the order in which clients
attach and leave. Until a segment is registered its requests are staged.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
import torch

from shmserve.layout import Geometry, slot_of

from .in_place import InPlaceMemory
from .interface import Device, PinFailed
from .pinned_pool import REMEDY, PinnedPool

log = logging.getLogger(__name__)

#: Not one of `real_time_priority.SERVICE_THREADS`: the serving thread does not wait for it.
THREAD = "registrations"

#: Memory of clients that left, of which a policy kept tensors: it stays registered and mapped.
_left_to_policies: list[RegisteredRequests] = []

Jobs = SimpleQueue[Callable[[], None] | None]


class Registrar:
    """Registers channels with slots above the threshold, and stops after the first failure."""

    def __init__(self, device: Device, host: PinnedPool, threshold: int | None, *, in_place: bool = False) -> None:
        """Create it; requests of at least `threshold` bytes of payload are copied directly, with None no channel is registered.

        `in_place`: they are not copied at all, because the policy reads them where they are.
        """
        self.device = device
        self._host = host
        self.threshold = threshold
        #: Whether policies read registered memory. Either thread may end that, and none begins it again.
        self.in_place = self.began_in_place = in_place and threshold is not None
        #: Written by the registrations' thread alone.
        self.channels = 0
        self.bytes = 0
        self._changed = False
        self._jobs: Jobs = SimpleQueue()
        self._has_thread = threshold is not None
        if self._has_thread:
            threading.Thread(target=_work, args=(self._jobs,), name=THREAD, daemon=True).start()
            weakref.finalize(self, self._jobs.put, None)

    def open(self, requests: int, geometry: Geometry) -> RegisteredRequests | None:
        """Begin to register the segment behind the descriptor, which the caller keeps; None if it is below the threshold."""
        if self.threshold is None or geometry.payload_bytes < self.threshold:
            return None
        try:
            registered = RegisteredRequests(requests, geometry, self)
        except OSError as error:
            self.fail(geometry, error)
            return None
        self.submit(registered.register)
        return registered

    def submit(self, job: Callable[[], None]) -> None:
        """Let the registrations' thread call `job` after all earlier ones."""
        if self._has_thread:
            self._jobs.put(job)
        else:
            job()

    def count(self, channels: int, size: int) -> None:
        """Count segments that were registered, or with negative numbers unregistered."""
        self.channels += channels
        self.bytes += size
        self._changed = True

    def fail(self, geometry: Geometry, error: Exception) -> None:
        """Warn of a segment that cannot be registered, and register no more."""
        # If the host refuses one segment, it refuses later ones as well; so do limits once they are reached.
        self.threshold = None
        self.in_place = False
        self._host.warn(
            f"the requests of a client ({geometry.segment_bytes} bytes) cannot be registered with the device ({error}): "
            f"large observations need an additional copy on the host; {REMEDY}"
        )
        self._changed = True

    def copy_instead(self, why: str) -> None:
        """Warn that the policy does not read registered memory from now on, and let the device copy it."""
        self.in_place = False
        self._host.warn(f"read_in_place = true, but observations are copied to the device: {why}")
        self._changed = True

    def take_change(self) -> bool:
        """Return whether the entries for status have changed since the last call."""
        if not self._changed:
            return False
        self._changed = False
        return True


def _work(jobs: Jobs) -> None:
    while (job := jobs.get()) is not None:
        try:
            job()
        except Exception:  # the other clients' memory must still be unregistered
            log.exception("a client's memory cannot be registered or given up")
        del job  # it keeps the registrar


class RegisteredRequests:
    """One generation of one client's request segment."""

    def __init__(self, requests: int, geometry: Geometry, registrar: Registrar) -> None:
        self._mapped: mmap.mmap | None = mmap.mmap(
            requests, geometry.segment_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
        self._geometry = geometry
        self._device = registrar.device
        self._registrar = registrar
        memory = torch.from_numpy(np.frombuffer(self._mapped, np.uint8))
        self._address = memory.data_ptr()
        #: Written by the registrations' thread alone.
        self._registered = False
        self._copied_from = False
        self._closed = False
        self._payloads = [
            memory[start : start + geometry.payload_bytes]
            for start in (geometry.payload_offset(slot) for slot in range(geometry.slots))
        ]
        #: The payloads of the slots as tensors of the device; empty if policies do not read in place.
        self._in_place: list[InPlaceMemory] = []

    def payload(self, sequence: int) -> torch.Tensor | None:
        """Return the payload bytes of the slot that `sequence` uses; None while they are not registered."""
        if not self._registered:
            return None
        self._copied_from = True
        return self._payloads[slot_of(sequence)]

    def in_place(self, sequence: int) -> InPlaceMemory | None:
        """Return the slot's payload for a policy that reads it where it is; None where it is to be copied."""
        if not self._registered or not self._in_place or not self._registrar.in_place:
            return None
        self._copied_from = True
        return self._in_place[slot_of(sequence)]

    def close(self) -> None:
        """Begin to unregister the segment and then to unmap it, after all copies from it; may be called twice."""
        if self._closed:
            return
        self._closed = True
        waits: list[Callable[[], None]] = []
        if self._copied_from:
            # The engine awaits copies before it answers a request, but not if the client has left.
            try:
                for ahead in (False, True):
                    event = self._device.event()
                    self._device.record(event, ahead=ahead)
                    waits.append(event.synchronize)
            except RuntimeError:
                waits = [self._device.synchronize]
        self._registrar.submit(lambda: self._give_up(waits))

    # In the registrations' thread

    def register(self) -> None:
        """Register the whole segment at once, unless its client has left by now."""
        if self._closed or self._registrar.threshold is None:
            return
        try:
            self._device.register(self._address, self._geometry.segment_bytes)
        except (PinFailed, RuntimeError) as error:
            self._registrar.fail(self._geometry, error)
            return
        self._registrar.count(1, self._geometry.segment_bytes)
        if self._registrar.in_place:
            self._map_in_place()
        self._registered = True

    def _map_in_place(self) -> None:
        geometry = self._geometry
        try:
            self._in_place = [
                InPlaceMemory(self._device, self._address + geometry.payload_offset(slot), geometry.payload_bytes)
                for slot in range(geometry.slots)
            ]
        except (PinFailed, RuntimeError) as error:
            self._registrar.copy_instead(str(error))

    def _give_up(self, waits: list[Callable[[], None]]) -> None:
        if self._registered:
            # ORDER: after the copies, and before the memory is unmapped, or the driver keeps pages that no longer belong to
            # this address.
            self._registered = False
            with contextlib.suppress(RuntimeError):  # raised by a lost device, which no longer copies
                for wait in waits:
                    wait()
            if any(memory.is_kept for memory in self._in_place):
                _left_to_policies.append(self)  # the device would fault where the policy reads it
                return
            self._in_place = []
            self._device.unregister(self._address)
            self._registrar.count(-1, -self._geometry.segment_bytes)
        self._payloads = []
        mapped, self._mapped = self._mapped, None
        if mapped is not None:
            with contextlib.suppress(BufferError):  # a tensor still uses it, and unmaps it when it is freed
                mapped.close()
