"""Warm-up of a link: its remote model and its fallback each answer the example, and must answer alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from shmserve.contract import contract_differences
from shmserve.errors import ModelPackageError

from ...packages.package import ModelPackage
from ..models.model import Model
from ..models.remote import RemoteModel
from .warmup import WarmupResult, warm_up

#: The fallback gets this much longer than the warm-up measured, and so much in any case, before a request's deadline.
_MARGIN_FACTOR, _MARGIN_NS = 2, 2_000_000


def warm_up_link(model: RemoteModel, device: torch.device, package: ModelPackage) -> WarmupResult:
    """Run the warm-up of `warm_up` for the remote model, unless it was not reached, and for the fallback.

    Raises ModelPackageError if either cannot be used, or if they differ in what they take or give.
    """
    remote = warm_up(model, torch.device("cpu"), package) if model.is_verified else None
    if remote is not None and remote.observation is None:
        raise ModelPackageError(
            f"the remote model {model.link.application!r} has no example observation, so its answers cannot be checked: "
            "add [warmup] example to the package that the cluster runs"
        )
    local = _warm_up_fallback(model, device)
    if remote is not None and local is not None:
        differences = contract_differences(remote.contract, local.contract)
        if differences:
            raise ModelPackageError(
                f"{package.path}: the fallback is no substitute for the remote model (remote -> fallback): "
                f"{'; '.join(differences)}"
            )
    if local is not None:
        model.expected = local.contract
        model.margin_ns = _MARGIN_NS + int(_MARGIN_FACTOR * 1e6 * (local.infer_ms or 0))
    result = remote or local
    assert result is not None  # `connect` refuses a link with neither
    if local is None:
        return result
    return replace(result, reply_bytes=max(result.reply_bytes, local.reply_bytes))


def _warm_up_fallback(model: RemoteModel, device: torch.device) -> WarmupResult | None:
    if model.fallback is None or model.fallback_package is None:
        return None
    given = model.fallback
    if model.fallback_package.example is None and given.example_observation() is None:
        if not model.is_verified:
            raise ModelPackageError(
                f"{model.fallback_package.path}: the remote model was not reached, and the fallback has no example of its "
                "own to warm up with: add one ([warmup] example), so that this machine can start while the link is down"
            )
        given = _WithExample(given, model.example_observation())
    return warm_up(given, device, model.fallback_package)


class _WithExample:
    """The fallback with the remote model's example."""

    def __init__(self, model: Model, example: Any) -> None:
        self._model = model
        self._example = example
        self.batches = model.batches
        self.takes_numpy = model.takes_numpy
        self.resets = model.resets

    def infer(self, observations: list[Any]) -> list[Any]:
        return self._model.infer(observations)

    def reset(self, client_id: int) -> None:
        self._model.reset(client_id)

    def example_observation(self) -> Any:
        return self._example

    def metadata(self) -> dict[str, Any]:
        return self._model.metadata()
