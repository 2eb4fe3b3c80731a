"""A policy object behind the engine's `Model`."""

from __future__ import annotations

from typing import Any

from ...model_package import ModelPackage
from .policy_styles import made_for_numpy


class PythonPolicy:
    """Asks the policy's own methods, those that it has. The engine calls it in inference mode."""

    def __init__(self, policy: Any, package: ModelPackage) -> None:
        self._policy = policy
        self._package = package
        self._infer = policy.infer
        self._infer_batch = getattr(policy, "infer_batch", None)
        self._reset = getattr(policy, "reset", None)
        self.batches = self._infer_batch is not None
        self.takes_numpy = package.arrays == "numpy" or made_for_numpy(policy)

    def infer(self, observations: list[Any]) -> list[Any]:
        if len(observations) == 1:
            return [self._infer(observations[0])]
        if self._infer_batch is None:
            return [self._infer(observation) for observation in observations]
        return self._checked(self._infer_batch(observations), len(observations))

    def _checked(self, results: Any, count: int) -> list[Any]:
        found = list(results)
        if len(found) != count:
            raise ValueError(f"infer_batch gave {len(found)} results for {count} observations")
        return found

    def reset(self, client_id: int) -> None:
        if self._reset is not None:
            self._reset(client_id)

    def example_observation(self) -> Any:
        example = getattr(self._policy, "example_observation", None)
        return example() if example is not None else None

    def metadata(self) -> dict[str, Any]:
        metadata = getattr(self._policy, "metadata", None)
        return {**self._package.metadata, **(metadata() if metadata is not None else {})}
