"""What a device does wrong, sorted by who has to pay for it.

| | the request | the engine |
|---|---|---|
| no memory for this request | fails, OutOfMemoryError | gives back what it kept, goes on |
| anything after which no call succeeds (a device-side assert, an illegal address, a lost GPU) | fails, DeviceError, if it ran alone; else each is tried alone by the next engine | ends; the next one answers what waits |
"""

from __future__ import annotations

from typing import Any

import torch

from ..models.model import Model
from .interface import Device

#: EX_TEMPFAIL: nothing is wrong with the model or its settings.
EXIT_STATUS = 75


class DeviceError(RuntimeError):
    """The device failed while it ran this request, and took its context along."""


class DeviceLost(BaseException):
    """No call of this process will succeed any more: the engine must end, with EXIT_STATUS and without cleaning up.

    No Exception: it is not for whoever answers one request and goes on with the next.
    """


class Guarded:
    """A model that takes its arrays on the host and uses a device by itself: tells when it has lost it.

    What it was doing is not answered but left to the next engine, as if this one had died of it.
    """

    takes_numpy = True

    def __init__(self, model: Model, device: Device) -> None:
        self._model = model
        self._device = device
        self.batches = model.batches

    def infer(self, observations: list[Any]) -> list[Any]:
        try:
            return self._model.infer(observations)
        except Exception as error:
            if (reason := self._device.poisoned()) is not None:
                raise DeviceLost(reason) from error
            if isinstance(error, torch.OutOfMemoryError):
                self._device.give_back()
            raise

    def reset(self, client_id: int) -> None:
        self._model.reset(client_id)

    def example_observation(self) -> Any:
        return self._model.example_observation()

    def metadata(self) -> dict[str, Any]:
        return self._model.metadata()
