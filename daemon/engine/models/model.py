"""Interface of a model to the engine, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


class Model(Protocol):
    """One loaded model. Arrays in observations are tensors on its device, unless it takes numpy arrays."""

    #: Whether `infer` may get several observations at once.
    batches: bool
    #: Observations are to hold numpy arrays, whatever the device: the policy was written for them.
    takes_numpy: bool
    #: Whether `reset` reaches anything of the model's.
    resets: bool

    def infer(self, observations: list[Any]) -> list[Any]:
        """One result for each observation, in their order."""

    def reset(self, client_id: int) -> None:
        """Forget what was kept for this client, where the model keeps anything."""

    def example_observation(self) -> Any:
        """An observation to warm up with (numpy arrays), None if the model knows none."""

    def metadata(self) -> dict[str, Any]:
        """The model's metadata for its clients."""


@runtime_checkable
class PerClient(Protocol):
    """Further methods of a model that keeps the state of each client apart."""

    def infer_for(self, observations: list[Any], client_ids: Sequence[int]) -> list[Any]:
        """As `infer`, each observation of the client at its place in `client_ids`."""

    def client_left(self, client_id: int) -> None:
        """This client is gone; another one may get its id."""
