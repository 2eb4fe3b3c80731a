"""Warm-up of a model on a device, and recording of its graphs."""

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
    """Warm up with the memory and the streams that requests will use; raises as `warm_up`."""
    with torch.no_grad():  # as in serving
        return _warm_up(model, context, package)


def _warm_up(model: Model, context: DeviceContext, package: ModelPackage) -> tuple[WarmupResult, Graphs | None]:
    context.device.rejoin()  # the model's constructor may have changed the stream
    staging = WarmUpStaging(context)
    result = warm_up(model, context.device.torch_device, package, staging=staging)
    staging.give_back()
    if not package.cuda_graph:
        return result, None
    if package.checks.get("observation"):
        raise ModelPackageError(
            "cuda_graph = true, but [checks] declares observation checks, which do not run with a graph: check in the "
            "client, or remove cuda_graph"
        )
    if result.example is None:
        raise ModelPackageError(
            "cuda_graph = true, but the model has no example observation to record with: add [warmup] example, or "
            "example_observation() to the class"
        )
    schema, payload = result.example
    graphs = Graphs(context, schema, result.observation, seeded=package.deterministic)
    graphs.record(model.inner if isinstance(model, Deterministic) else model, payload, package)
    return result, graphs
