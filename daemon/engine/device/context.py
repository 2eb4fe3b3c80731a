"""State of one engine for its device: two arenas, the readback memory and the registered channels."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from shmserve.codec import SlotMemory
from shmserve.layout import CACHE_LINE, aligned
from shmserve.schema import Schema

from ...ipc.messages import Load, ServingModel
from ...packages.package import ModelPackage
from .areas import Areas
from .arena import Arena
from .errors import raise_if_lost
from .in_place import may_read_in_place
from .interface import Device
from .memory import ServingMemory, check_room, needed_bytes, package_bytes
from .pinned_pool import PinnedPool, block_bytes
from .readback import Readback
from .registration import Registrar
from .tuning import measured_threshold

#: Limit of an arena for a batch of more than one request; with larger requests, fewer share a batch.
_BATCH_BYTES = 256 << 20


class DeviceContext:
    """The engine's memory and registrations for its device, created once before the warm-up."""

    def __init__(self, device: Device, *, max_batch: int, register_bytes: int | None, in_place: bool = False) -> None:
        """Create it; `register_bytes` and `in_place` are those of the `Registrar`."""
        self.device = device
        self.max_batch = max_batch
        self.host = PinnedPool(device)
        self.arenas = (Arena(device, self.host), Arena(device, self.host))
        self.results = Readback(device, self.host)
        self.registrar = Registrar(device, self.host, register_bytes, in_place=in_place)
        #: GPU memory that clients write arrays to; None: this engine takes none from there.
        self.areas: Areas | None = None
        #: Largest batch size that runs as a graph; 0 without graphs.
        self.graphs = 0
        #: Memory in use before the model is loaded, except by torch.
        self._used_before = self._used_beside_torch()
        #: Memory that its libraries (TensorRT, Triton, cuBLAS) took during the load; measured once, because other processes
        #: use the device as well.
        self._library_bytes: int | None = None

    def make_room(self, payload_bytes: int) -> None:
        """Grow the arenas for batches of requests of this size; only while nothing is staged.

        Raises torch.OutOfMemoryError, and then keeps the arenas as they were.
        """
        row = aligned(payload_bytes, CACHE_LINE)
        size = max(row, min(row * self.max_batch, _BATCH_BYTES))
        before = max(arena.size for arena in self.arenas)
        if size <= before:
            return
        block = block_bytes(size)  # torch page-locks the whole block in any case
        if size < block:
            with contextlib.suppress(torch.OutOfMemoryError):
                self._grow(block)
                return
        self._grow(size)

    def _grow(self, size: int) -> None:
        small = [arena for arena in self.arenas if not arena.fixed and arena.size < size]
        larger = [arena.larger(size) for arena in small]
        for arena, memory in zip(small, larger, strict=True):
            arena.adopt(memory)
        self.host.trim()

    def _used_beside_torch(self) -> int:
        free, total = self.device.free_memory()
        return total - free - self.device.reserved_memory()

    def report(self) -> dict[str, Any]:
        """Return the device's entries for status; the first call follows the model's load. Raises DeviceLost."""
        try:
            return self._report()
        except RuntimeError as error:
            raise_if_lost(self.device, error)
            raise

    def _report(self) -> dict[str, Any]:
        free, total = self.device.free_memory()
        if self._library_bytes is None:
            self._library_bytes = max(0, self._used_beside_torch() - self._used_before)
        return {
            **self.device.facts(),
            "free_bytes": free,
            "total_bytes": total,
            "model_bytes": self.device.used_memory() + self._library_bytes,
            "library_bytes": self._library_bytes,
            "staging": "pageable" if self.host.pageable_bytes else "pinned",
            "in_place": self.registrar.in_place,
            "staging_bytes": self.host.pinned_bytes + self.host.pageable_bytes,
            "register_bytes": self.registrar.threshold,
            "registered_channels": self.registrar.channels,
            "registered_bytes": self.registrar.bytes,
            "device_leaves": self.areas is not None,
            "shared_bytes": self.areas.bytes if self.areas is not None else 0,
            "graphs": self.graphs,
            "warnings": self.host.warnings[:],
        }


def open_context(device: Device, package: ModelPackage, order: Load) -> DeviceContext:
    """Create the context for this package after checking that the device has enough memory.

    Raises DeviceMemoryShort before the model is loaded.
    """
    _check_room(device, package, order.serving_model)
    threshold = order.register_bytes
    in_place = may_read_in_place(device, package, order)
    if threshold is None and in_place:
        threshold = 1
    if threshold is None:
        threshold = measured_threshold(device)
        device.give_back_pinned()
    max_batch = 1 if package.deterministic else package.max_batch
    return DeviceContext(device, max_batch=max_batch, register_bytes=threshold or None, in_place=in_place)


def _check_room(device: Device, package: ModelPackage, serving_model: ServingModel | None) -> None:
    if serving_model is None or serving_model.device != str(device.torch_device):
        return
    serving = ServingMemory(serving_model.model_bytes, package_bytes(Path(serving_model.package)))
    needed, why = needed_bytes(package_bytes(package.path), package.device_bytes, serving)
    free, total = device.free_memory()
    check_room(free, total, needed, why, str(device.torch_device))


class WarmUpStaging:
    """Staging of the warm-up's observations, in the same way as for requests; replaces a `Staging`."""

    def __init__(self, context: DeviceContext) -> None:
        self._context = context
        self._turn = 0

    def observation(
        self, schema: Schema, slot: SlotMemory, payload_bytes: int, *, in_place: bool, pickled: bool
    ) -> Any:
        """Return the tree in `slot`, its arrays as tensors on the device."""
        arena = self._context.arenas[self._turn]
        arena.done()  # ends the round before the previous one
        self._context.make_room(payload_bytes)
        self._turn ^= 1
        observation = arena.place(schema, slot.payload, payload_bytes, ahead=False)
        arena.send(ahead=False)
        return observation

    def settle(self, action: Any) -> Any:
        """Copy the action to the host, wait for the device, and return it."""
        self._context.device.rejoin()
        self._context.results.begin()
        found = self._context.results.fetch(action)
        for arena in self._context.arenas:
            arena.computed()
        self._context.device.synchronize()
        return found

    def give_back(self) -> None:
        """Release the arenas, once the warm-up no longer uses its observation and action."""
        for arena in self._context.arenas:
            arena.done()
