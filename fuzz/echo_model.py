"""Minimal model for an engine: it returns the observation."""

from __future__ import annotations

from typing import Any


class EchoModel:
    """Model that takes one observation at a time, with tensors, and keeps no state."""

    batches = False
    takes_numpy = False
    resets = False

    def infer(self, observations: list[Any]) -> list[Any]:
        return list(observations)

    def reset(self, client_id: int) -> None:
        """Reset nothing: the model keeps no state."""

    def example_observation(self) -> Any:
        return None

    def metadata(self) -> dict[str, Any]:
        return {}
