"""Adapter from a policy object to the engine's `Model`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ...packages.package import ModelPackage
from .policy_styles import has_reset, made_for_numpy


class PythonPolicy:
    """Model that calls the policy's methods, as far as it has them. The engine calls it under torch.no_grad."""

    def __init__(self, policy: Any, package: ModelPackage) -> None:
        self._policy = policy
        self._package = package
        self._infer = policy.infer if package.grad else _in_inference_mode(policy.infer)
        infer_batch = getattr(policy, "infer_batch", None)
        self._infer_batch = infer_batch if infer_batch is None or package.grad else _in_inference_mode(infer_batch)
        self._reset = getattr(policy, "reset", None)
        #: Called shortly before a request that is expected; None for most policies.
        self.warm: Callable[[], object] | None = getattr(policy, "warm", None)
        self.resets = has_reset(policy)
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
            raise ValueError(f"infer_batch returned {len(found)} results for {count} observations")
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


def _in_inference_mode(method: Callable[..., Any]) -> Callable[..., Any]:
    mode = torch.inference_mode()

    @functools.wraps(method)
    def call(*observations: Any, **client_ids: Any) -> Any:
        with mode:
            return method(*observations, **client_ids)

    return call
