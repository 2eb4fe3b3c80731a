"""The least that an engine takes for a model: it answers with what it was asked."""

from __future__ import annotations

from typing import Any


class EchoModel:
    """Takes one observation at a time, with tensors, and keeps nothing."""

    batches = False
    takes_numpy = False
    resets = False

    def infer(self, observations: list[Any]) -> list[Any]:
        return list(observations)

    def reset(self, client_id: int) -> None:
        """A robot begins again; there is nothing to forget."""

    def example_observation(self) -> Any:
        return None

    def metadata(self) -> dict[str, Any]:
        return {}
