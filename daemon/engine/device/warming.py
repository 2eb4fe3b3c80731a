"""Warm-up of a model on a device, and recording of its graphs."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import torch

from shmserve.codec import SlotMemory
from shmserve.errors import ModelPackageError
from shmserve.schema import Schema

from ...packages.package import ModelPackage
from ..models.determinism import Deterministic
from ..models.model import Model
from ..warmup.warmup import WarmupResult, warm_up
from .context import DeviceContext, WarmUpStaging
from .graphs import Graphs
from .in_place import InPlaceMemory
from .interface import PinFailed

_ADVICE = "without read_in_place = true it runs unchanged"


class InPlaceWarmUp(WarmUpStaging):
    """Staging of the warm-up for a policy that reads in place: checks that it neither changes nor keeps its observation."""

    def __init__(self, context: DeviceContext) -> None:
        super().__init__(context)
        self._shared = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._memory: InPlaceMemory | None = None
        #: Bytes of the memory before the policy read it.
        self._before = self._shared.numpy()

    def observation(
        self, schema: Schema, slot: SlotMemory, payload_bytes: int, *, in_place: bool, pickled: bool
    ) -> Any:
        if self._memory is None and self._context.registrar.in_place:
            self._register(payload_bytes)
        if self._memory is None:
            return super().observation(schema, slot, payload_bytes, in_place=in_place, pickled=pickled)
        self._before = slot.payload[:payload_bytes]
        shared = self._shared.numpy()
        np.copyto(shared, self._before)
        return self._memory.observation(schema, shared, payload_bytes)

    def _register(self, payload_bytes: int) -> None:
        # Shared like a segment; unmapped when its last tensor is freed.
        self._shared = torch.from_numpy(np.frombuffer(mmap.mmap(-1, payload_bytes), np.uint8))
        address = self._shared.data_ptr()
        device = self._context.device
        try:
            device.register(address, payload_bytes)
            try:
                self._memory = InPlaceMemory(device, address, payload_bytes)
            except BaseException:
                device.unregister(address)
                raise
        except (PinFailed, RuntimeError) as error:
            self._context.registrar.copy_instead(str(error))

    def settle(self, action: Any) -> Any:
        found = super().settle(action)
        if self._memory is not None and not np.array_equal(self._shared.numpy(), self._before):
            raise ModelPackageError(f"read_in_place = true, but the policy writes to its observation: {_ADVICE}")
        return found

    def give_back(self) -> None:
        super().give_back()
        if self._memory is None:
            return
        if self._memory.is_kept:
            raise ModelPackageError(
                f"read_in_place = true, but the policy keeps a tensor of its observation: {_ADVICE}"
            )
        self._memory = None
        self._context.device.unregister(self._shared.data_ptr())


def warm_up_device(model: Model, context: DeviceContext, package: ModelPackage) -> tuple[WarmupResult, Graphs | None]:
    """Warm up with the memory and the streams that requests will use; raises as `warm_up`."""
    with torch.no_grad():  # as in serving
        return _warm_up(model, context, package)


def _warm_up(model: Model, context: DeviceContext, package: ModelPackage) -> tuple[WarmupResult, Graphs | None]:
    context.device.rejoin()  # the model's constructor may have changed the stream
    staging = InPlaceWarmUp(context) if context.registrar.in_place else WarmUpStaging(context)
    result = warm_up(model, context.device.torch_device, package, staging=staging)
    staging.give_back()
    if not package.cuda_graph:
        return result, None
    if package.checks.get("observation"):
        raise ModelPackageError(
            "cuda_graph = true, but [checks] declares observation checks, which do not run with a graph: check in the "
            "client, or remove cuda_graph"
        )
    if result.example is None:
        raise ModelPackageError(
            "cuda_graph = true, but the model has no example observation to record with: add [warmup] example, or "
            "example_observation() to the class"
        )
    schema, payload = result.example
    graphs = Graphs(context, schema, result.observation, seeded=package.deterministic)
    graphs.record(model.inner if isinstance(model, Deterministic) else model, payload, package)
    return result, graphs
