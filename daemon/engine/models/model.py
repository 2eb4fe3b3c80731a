"""Interface between the engine and a model of any format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


class Model(Protocol):
    """A loaded model. Arrays in observations are tensors on its device, unless it takes numpy arrays."""

    #: Whether `infer` may get several observations at once.
    batches: bool
    #: Whether observations must hold numpy arrays on every device, because the policy was written for them.
    takes_numpy: bool
    #: Whether `reset` has an effect.
    resets: bool

    def infer(self, observations: list[Any]) -> list[Any]:
        """Return one result for each observation, in their order."""

    def reset(self, client_id: int) -> None:
        """Discard the state of this client, if the model keeps any."""

    def example_observation(self) -> Any:
        """Return an observation for the warm-up (numpy arrays), None if the model has none."""

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata for its clients."""


@runtime_checkable
class PerClient(Protocol):
    """Additional methods of a model that keeps separate state for each client."""

    def infer_for(self, observations: list[Any], client_ids: Sequence[int]) -> list[Any]:
        """Run as `infer`; `client_ids` names the client of each observation."""

    def client_left(self, client_id: int) -> None:
        """Discard the state of a client that has left; another client may get its id."""
