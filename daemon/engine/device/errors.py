"""What a device does wrong, sorted by who has to pay for it.

| | the request | the engine |
|---|---|---|
| no memory for this request | fails, OutOfMemoryError | gives back what it kept, goes on |
| anything after which no call succeeds (a device-context assert, an illegal address, a lost GPU) | fails, DeviceError, if it ran alone; else each is tried alone by the next engine | ends; the next one answers what waits |
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

#: How CUDA, its libraries, Triton and XLA say that there is no memory.
_OUT_OF_MEMORY = re.compile(
    r"CUDA(?: error|\])?: out of memory|CUDA out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|"
    r"\bCU[A-Z]+_[A-Z_]*ALLOC(?:ATION)?_FAILED\b|\bRESOURCE_EXHAUSTED\b"
)
#: cudaErrorMemoryAllocation.
_OUT_OF_MEMORY_CODE = 2
_ACCELERATOR_ERROR = getattr(torch, "AcceleratorError", None)

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that the device, or what CUDA locks of the host, has no memory left.

    torch.OutOfMemoryError comes from torch's own allocator alone.

    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    True
    >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("no such joint"))
    (True, False)
    """
    # By the type: isinstance and getattr would run code of an exception class of the policy.
    kind = type(error)
    if issubclass(kind, torch.OutOfMemoryError):
        return True
    if not issubclass(kind, (RuntimeError, MemoryError)):
        return False
    if kind is _ACCELERATOR_ERROR and getattr(error, "error_code", None) == _OUT_OF_MEMORY_CODE:
        return True
    return _OUT_OF_MEMORY.search(text_of(error)) is not None


def as_out_of_memory(error: BaseException) -> torch.OutOfMemoryError | None:
    """The error as torch's own of this kind; None for one of another kind."""
    if issubclass(type(error), torch.OutOfMemoryError):
        return error
    if not is_out_of_memory(error):
        return None
    short = torch.OutOfMemoryError(text_of(error))
    short.__cause__ = error
    return short


def with_memory_given_back(device: Device, take: Callable[[], T]) -> T:
    """What `take` takes of the device; where there is no memory, once more without what is kept for later tensors.

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
    """Raises DeviceLost if no call of this process will succeed any more, as `error`, which it raised, may say."""
    if (reason := device.poisoned()) is not None:
        raise DeviceLost(reason) from error


class DeviceErrorGuard:
    """A model that takes its arrays on the host and uses a device by itself: tells when it has lost it.

    What it was doing is not answered but left to the next engine, as if this one had died of it.
    """

    takes_numpy = True

    def __init__(self, model: Model, device: Device) -> None:
        self._model = model
        self._device = device
        self.batches = model.batches
        self.resets = model.resets

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
    """As DeviceErrorGuard, for a model that keeps the state of each client apart."""

    def __init__(self, model: Any, device: Device) -> None:
        super().__init__(model, device)
        self._per_client: PerClient = model

    def infer_for(self, observations: list[Any], client_ids: Sequence[int]) -> list[Any]:
        return self._asked(lambda: self._per_client.infer_for(observations, client_ids))

    def client_left(self, client_id: int) -> None:
        self._asked(lambda: self._per_client.client_left(client_id))


def guarded(model: Model, device: Device) -> DeviceErrorGuard:
    """`model`, so that it tells when it has lost its device."""
    return DeviceErrorGuardPerClient(model, device) if isinstance(model, PerClient) else DeviceErrorGuard(model, device)
