"""Errors of a device, by their effect on the request and on the engine.

| | the request | the engine |
|---|---|---|
| no memory for this request | fails, OutOfMemoryError | releases cached memory, continues |
| an error after which no call succeeds (a device-side assert, an illegal address, a lost GPU) | fails, DeviceError, if it ran alone; else the next engine runs each of the batch alone | ends; the next one serves the waiting requests |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ..device_failure import DeviceLost
from ..error_text import text_of
from ..models.model import Model, PerClient
from .interface import Device

#: Out-of-memory messages of CUDA, its libraries, Triton and XLA.
_OUT_OF_MEMORY = re.compile(
    r"CUDA(?: error|\])?: out of memory|CUDA out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|"
    r"\bCU[A-Z]+_[A-Z_]*ALLOC(?:ATION)?_FAILED\b|\bRESOURCE_EXHAUSTED\b"
)
#: cudaErrorMemoryAllocation.
_OUT_OF_MEMORY_CODE = 2
_ACCELERATOR_ERROR = getattr(torch, "AcceleratorError", None)

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error means that the device's memory, or CUDA's page-locked memory, is exhausted.

    Only torch's own allocator raises torch.OutOfMemoryError.

    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    True
    >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("no such joint"))
    (True, False)
    """
    # By the type: isinstance and getattr could run the code of a policy's exception class.
    kind = type(error)
    if issubclass(kind, torch.OutOfMemoryError):
        return True
    if not issubclass(kind, (RuntimeError, MemoryError)):
        return False
    if kind is _ACCELERATOR_ERROR and getattr(error, "error_code", None) == _OUT_OF_MEMORY_CODE:
        return True
    return _OUT_OF_MEMORY.search(text_of(error)) is not None


def as_out_of_memory(error: BaseException) -> torch.OutOfMemoryError | None:
    """Return an out-of-memory error as torch.OutOfMemoryError, None for another error."""
    if issubclass(type(error), torch.OutOfMemoryError):
        return error
    if not is_out_of_memory(error):
        return None
    short = torch.OutOfMemoryError(text_of(error))
    short.__cause__ = error
    return short


def with_memory_given_back(device: Device, take: Callable[[], T]) -> T:
    """Call `take`; if the device has too little memory, release torch's cached memory and call it again.

    Raises torch.OutOfMemoryError.
    """
    try:
        return take()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    device.give_back()
    try:
        return take()
    except RuntimeError as error:
        raise as_out_of_memory(error) or error from None


def raise_if_lost(device: Device, error: BaseException) -> None:
    """Raise DeviceLost if no later call of this process can succeed, as `error`, which the device raised, may show."""
    if (reason := device.poisoned()) is not None:
        raise DeviceLost(reason) from error


class DeviceErrorGuard:
    """Wrapper of a model that takes its arrays on the host and uses a device by itself: raises DeviceLost.

    The requests that were running stay unanswered for the next engine, as after a crash.
    """

    takes_numpy = True

    def __init__(self, model: Model, device: Device) -> None:
        self._model = model
        self._device = device
        self.batches = model.batches
        self.resets = model.resets
        warm: Callable[[], object] | None = getattr(model, "warm", None)
        self.warm = None if warm is None else lambda: self._asked(warm)

    def infer(self, observations: list[Any]) -> list[Any]:
        return self._asked(lambda: self._model.infer(observations))

    def _asked(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except BaseException as error:
            raise_if_lost(self._device, error)
            short = as_out_of_memory(error)
            if short is not None:
                self._device.give_back()
            if short is None or short is error:
                raise
            raise short from error

    def reset(self, client_id: int) -> None:
        self._asked(lambda: self._model.reset(client_id))

    def example_observation(self) -> Any:
        return self._model.example_observation()

    def metadata(self) -> dict[str, Any]:
        return self._model.metadata()


class DeviceErrorGuardPerClient(DeviceErrorGuard):
    """As DeviceErrorGuard, for a model that keeps separate state for each client."""

    def __init__(self, model: Any, device: Device) -> None:
        super().__init__(model, device)
        self._per_client: PerClient = model

    def infer_for(self, observations: list[Any], client_ids: Sequence[int]) -> list[Any]:
        return self._asked(lambda: self._per_client.infer_for(observations, client_ids))

    def client_left(self, client_id: int) -> None:
        self._asked(lambda: self._per_client.client_left(client_id))


def guarded(model: Model, device: Device) -> DeviceErrorGuard:
    """Wrap `model` so that it raises DeviceLost when its device is lost."""
    return DeviceErrorGuardPerClient(model, device) if isinstance(model, PerClient) else DeviceErrorGuard(model, device)
