"""Warms a model up on a device, and records its graphs."""

from __future__ import annotations

import torch

from shmserve.errors import ModelPackageError

from ...packages.package import ModelPackage
from ..models.determinism import Deterministic
from ..models.model import Model
from ..warmup.warmup import WarmupResult, warm_up
from .context import DeviceContext, WarmUpStaging
from .graphs import Graphs


def warm_up_device(model: Model, context: DeviceContext, package: ModelPackage) -> tuple[WarmupResult, Graphs | None]:
    """As `warm_up`, with the memory and the streams that requests will use. Raises what that raises."""
    with torch.no_grad():  # as when it serves
        return _warm_up(model, context, package)


def _warm_up(model: Model, context: DeviceContext, package: ModelPackage) -> tuple[WarmupResult, Graphs | None]:
    context.device.rejoin()  # whatever its constructor did
    staging = WarmUpStaging(context)
    result = warm_up(model, context.device.torch_device, package, staging=staging)
    staging.give_back()
    if not package.cuda_graph:
        return result, None
    if package.checks.get("observation"):
        raise ModelPackageError(
            "cuda_graph = true, but [checks] looks at observations, which a recorded policy reads by itself: check in the "
            "robot, or leave cuda_graph out"
        )
    if result.example is None:
        raise ModelPackageError(
            "cuda_graph = true, but there is no example observation to record with: add [warmup] example, or "
            "example_observation() to the class"
        )
    schema, payload = result.example
    graphs = Graphs(context, schema, result.observation, seeded=package.deterministic)
    graphs.record(model.inner if isinstance(model, Deterministic) else model, payload, package)
    return result, graphs
