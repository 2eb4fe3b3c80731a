"""GPU memory that clients write their arrays to: one allocation for each channel, with an area for each slot.

Each side maps the memory by its descriptor. A slot's area belongs to the client until it publishes the request, and to the
engine until it has answered. An engine never waits for another process's stream: a client publishes once its copies are done.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from shmserve.layout import slot_of
from shmserve.schema import LeafPlace

from .interface import Device, SharedMemory


@dataclass(frozen=True)
class Area:
    """The memory of one channel."""

    memory: SharedMemory
    area_bytes: int
    slots: int

    def leaf(self, sequence: int, place: LeafPlace) -> torch.Tensor | None:
        """Return the bytes of a leaf of this request; None if it does not lie in its slot's area."""
        slot = slot_of(sequence)
        if slot >= self.slots or place.offset + place.size > self.area_bytes:
            return None
        start = slot * self.area_bytes + place.offset
        return self.memory.tensor[start : start + place.size]


class Areas:
    """The areas by channel. They change only while nothing is staged or on the device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._areas: dict[int, Area] = {}

    def allocate(self, area_bytes: int, slots: int) -> tuple[Area, int]:
        """Return new memory for a channel to `use`, and a descriptor for it, which is the caller's; raises SharingFailed."""
        descriptor, size = self._device.create_shared(area_bytes * slots)
        try:
            area = self.map(descriptor, size, area_bytes, slots)
        except BaseException:
            os.close(descriptor)
            raise
        area.memory.tensor.zero_()  # it may hold what another process has left
        self._device.synchronize()
        return area, descriptor

    def map(self, descriptor: int, size: int, area_bytes: int, slots: int) -> Area:
        """Map memory that this or another engine has allocated; the descriptor stays the caller's. Raises SharingFailed."""
        return Area(self._device.map_shared(descriptor, size), area_bytes, slots)

    def use(self, channel: int, area: Area) -> None:
        """Read a channel's arrays from this memory from now on."""
        self.forget(channel)
        self._areas[channel] = area

    def of(self, channel: int) -> Area | None:
        """Return a channel's memory; None if it has none."""
        return self._areas.get(channel)

    def area_bytes(self, channel: int) -> int:
        """Return how many bytes a request of this channel can have there."""
        area = self._areas.get(channel)
        return area.area_bytes if area is not None else 0

    def forget(self, channel: int) -> None:
        """Unmap the memory of a channel, if it has any."""
        area = self._areas.pop(channel, None)
        if area is not None:
            area.memory.close()

    @property
    def bytes(self) -> int:
        """Of all mapped memory."""
        return sum(area.memory.size for area in self._areas.values())

    @property
    def gpu(self) -> str:
        """The GPU's UUID, in hexadecimal; raises SharingFailed."""
        return self._device.uuid()
