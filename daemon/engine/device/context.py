"""What one engine keeps for its device: two arenas, the memory actions come back to, and what is registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shmserve.codec import SlotMemory
from shmserve.layout import CACHE_LINE, aligned
from shmserve.schema import Schema

from ...ipc.messages import Load, ServingModel
from ...packages.package import ModelPackage
from .arena import Arena
from .errors import raise_if_lost
from .interface import Device
from .memory import Beside, check_room, needed_bytes, package_bytes
from .pinned_pool import PinnedPool
from .readback import Readback
from .registration import Registrar
from .tuning import measured_threshold

#: An arena is not made larger than this for a whole batch of the largest channel's requests: fewer then go together.
_BATCH_BYTES = 256 << 20


class DeviceContext:
    """Made once, before the model is warmed up with it."""

    def __init__(self, device: Device, *, max_batch: int, register_bytes: int | None) -> None:
        """`register_bytes`: requests from this size on are copied from the client's memory; None: none are."""
        self.device = device
        self.max_batch = max_batch
        self.host = PinnedPool(device)
        self.arenas = (Arena(device, self.host), Arena(device, self.host))
        self.results = Readback(device, self.host)
        self.registrar = Registrar(device, self.host, register_bytes)
        #: Batch sizes that are run as a graph.
        self.graphs = 0

    def make_room(self, payload_bytes: int) -> None:
        """Have arenas for batches of such requests; nothing may be staged.

        Raises torch.OutOfMemoryError, and then all is as it was before.
        """
        row = aligned(payload_bytes, CACHE_LINE)
        size = max(row, min(row * self.max_batch, _BATCH_BYTES))
        small = [arena for arena in self.arenas if not arena.fixed and arena.size < size]
        larger = [arena.larger(size) for arena in small]
        for arena, (host, memory) in zip(small, larger, strict=True):
            arena.adopt(host, memory)

    def report(self) -> dict[str, Any]:
        """What status shows. Raises DeviceLost."""
        try:
            return self._report()
        except RuntimeError as error:
            raise_if_lost(self.device, error)
            raise

    def _report(self) -> dict[str, Any]:
        free, total = self.device.free_memory()
        return {
            **self.device.facts(),
            "free_bytes": free,
            "total_bytes": total,
            "model_bytes": self.device.used_memory(),
            "staging": "pageable" if self.host.pageable_bytes else "pinned",
            "staging_bytes": self.host.pinned_bytes + self.host.pageable_bytes,
            "register_bytes": self.registrar.threshold,
            "registered_channels": self.registrar.channels,
            "registered_bytes": self.registrar.bytes,
            "graphs": self.graphs,
            "warnings": self.host.warnings[:],
        }


def open_context(device: Device, package: ModelPackage, order: Load) -> DeviceContext:
    """What an engine needs of the device for this package, once there is room for it.

    Raises DeviceMemoryShort, before anything was loaded.
    """
    _check_room(device, package, order.serving_model)
    threshold = order.register_bytes
    if threshold is None:
        threshold = measured_threshold(device)
    max_batch = 1 if package.deterministic else package.max_batch
    return DeviceContext(device, max_batch=max_batch, register_bytes=threshold or None)


def _check_room(device: Device, package: ModelPackage, serving_model: ServingModel | None) -> None:
    if serving_model is None or serving_model.device != str(device.torch_device):
        return
    serving = Beside(serving_model.model_bytes, package_bytes(Path(serving_model.package)))
    needed, why = needed_bytes(package_bytes(package.path), package.device_bytes, serving)
    free, total = device.free_memory()
    check_room(free, total, needed, why, str(device.torch_device))


class WarmUpStaging:
    """Stages the warm-up's observations as a request's would be; in the place of a `Staging`."""

    def __init__(self, context: DeviceContext) -> None:
        self._context = context
        self._turn = 0

    def observation(self, schema: Schema, slot: SlotMemory, *, in_place: bool, pickled: bool) -> Any:
        """The tree in `slot`, its arrays as tensors on the device."""
        arena = self._context.arenas[self._turn]
        arena.done()  # with the round before the last one
        self._context.make_room(schema.payload_bytes)
        self._turn ^= 1
        observation = arena.place(schema, slot.payload, ahead=False)
        arena.send(ahead=False)
        return observation

    def settle(self, action: Any) -> Any:
        """The action on the host, once the device has done with it."""
        self._context.device.rejoin()
        self._context.results.begin()
        found = self._context.results.fetch(action)
        for arena in self._context.arenas:
            arena.computed()
        self._context.device.synchronize()
        return found

    def give_back(self) -> None:
        """Observation and action are gone, as far as the warm-up is concerned."""
        for arena in self._context.arenas:
            arena.done()
