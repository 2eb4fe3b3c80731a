"""Observations that a policy reads from clients' memory, without a copy, on a device that shares the memory of the host.

For packages with `read_in_place = true`, which promise that the policy neither changes nor keeps its observation. Bytes that
a policy changed would be seen by the next engine, so a request that was read in place runs once (`DeviceServing`). Memory
of a client that left is unregistered, and a tensor that a policy kept of it would end the device's context, so such memory
stays (`RegisteredRequests`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from shmserve.codec import plain_leaf
from shmserve.schema import LeafPlace, Schema

from ...ipc.messages import Load
from ...packages.package import ModelPackage
from .arena import device_tensor
from .interface import Device, sharing


def may_read_in_place(device: Device, package: ModelPackage, order: Load) -> bool:
    """Return whether the policy reads clients' memory, as far as that is known before any is registered."""
    return bool(
        package.read_in_place
        and not package.cuda_graph  # a graph reads the arenas
        and order.trusted_transport
        and order.register_bytes != 0
        and device.facts()["integrated"]
    )


class InPlaceMemory:
    """Registered memory of one payload, as tensors of the device."""

    def __init__(self, device: Device, address: int, size: int) -> None:
        """Raises PinFailed if the device cannot read the memory."""
        self._memory = device.over(address, size)
        self._places: list[LeafPlace] = []
        self._tensors: list[torch.Tensor | None] = []
        self._empty = self._own = sharing(self._memory)

    def observation(self, schema: Schema, payload: npt.NDArray[np.uint8], payload_bytes: int) -> Any:
        """Return the tree of the payload, which is in this memory, its arrays as tensors over it; raises MetadataError."""
        places = schema.layout(payload, payload_bytes)  # of a copy of the sizes
        if places is not self._places:
            self._make_tensors(places)
        leaves = [
            plain_leaf(place, payload) if tensor is None else tensor.detach()
            for place, tensor in zip(places, self._tensors, strict=True)
        ]
        return schema.reader.unflatten(schema.reader.numbers(payload), leaves)

    def _make_tensors(self, places: list[LeafPlace]) -> None:
        self._tensors = []
        before = sharing(self._memory)
        with torch.inference_mode(False), torch.no_grad():
            self._tensors = [device_tensor(place, self._memory) if place.kind == "array" else None for place in places]
        self._places = places
        after = sharing(self._memory)
        if self._empty is not None and before is not None and after is not None:
            # Not `after` itself, which would count what the policy keeps.
            self._own = self._empty[0] + after[0] - before[0], self._empty[1] + after[1] - before[1]

    @property
    def is_kept(self) -> bool:
        """Whether a tensor that `observation` gave, or one that shares its memory, still exists; False if that is unknown."""
        return self._own != sharing(self._memory)
