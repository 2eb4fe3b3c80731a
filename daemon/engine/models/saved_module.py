"""Adapter from a saved module, which has arguments but no policy class, to the engine's `Model`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...packages.package import ModelPackage
from .actions import ActionNames
from .arguments import Arguments, signature_of
from .rows import split, stacked


class SavedModule:
    """Model that extracts arguments from observations, calls the module and names its results."""

    takes_numpy = False

    def __init__(
        self,
        package: ModelPackage,
        arguments: Arguments,
        call: Callable[[list[Any]], Any],
        *,
        reset: Callable[[int], None] | None = None,
        example: Any = None,
    ) -> None:
        """Create it; `call` takes the values of `arguments` in order, with a first dimension if the package has batch_dim."""
        self._package = package
        self._arguments = arguments
        self._call = call
        self._actions = ActionNames(package)
        self._reset = reset
        self.resets = reset is not None
        self._example = example
        self._mode = torch.no_grad() if package.grad else torch.inference_mode()
        self.batches = package.batch_dim and package.max_batch > 1

    def infer(self, observations: list[Any]) -> list[Any]:
        rows = [self._arguments.of(observation) for observation in observations]
        with self._mode:
            if not self._package.batch_dim:
                return [self._actions.of(self._call(row)) for row in rows]
            if len(rows) == 1:
                return split(self._actions.of(self._call(stacked(rows))), 1)
            return self._infer_alike(rows)

    def _infer_alike(self, rows: list[list[Any]]) -> list[Any]:
        """Run one call for each group of rows that can be stacked."""
        groups: dict[Any, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(signature_of(row), []).append(index)
        actions: list[Any] = [None] * len(rows)
        for indices in groups.values():
            together = self._actions.of(self._call(stacked([rows[index] for index in indices])))
            for index, action in zip(indices, split(together, len(indices)), strict=True):
                actions[index] = action
        return actions

    def reset(self, client_id: int) -> None:
        if self._reset is not None:
            with self._mode:
                self._reset(client_id)

    def example_observation(self) -> Any:
        return self._example

    def metadata(self) -> dict[str, Any]:
        return dict(self._package.metadata)
