"""A package as an application of Ray Serve, which links reach over gRPC. Needs the extra `ray`."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from ray import serve
from ray.serve.config import gRPCOptions

from shmserve.daemon.engine.models.uplink import SERVICE
from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError

log = logging.getLogger(__name__)

#: Beyond this many requests for each place in a batch, a replica's proxy answers that the application is busy.
_ONGOING, _QUEUED = 2, 4
_LEAST_ONGOING = 16


class Message:
    """Bytes of a reply, as Ray Serve's gRPC proxy takes a result."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:
        return self._data


class ModelDeployment:
    """Ray Serve's end of one replica."""

    def __init__(self, path: str, version: str, device: str) -> None:
        from .replica import Replica  # torch, on the cluster alone

        self._replica = Replica(Path(path), device, version=version)
        # The model has a separate thread, so that probes are answered while it runs.
        self._thread = ThreadPoolExecutor(1, "shmserve-model")
        self._batched.set_max_batch_size(self._replica.max_batch)

    async def Describe(self, data: bytes) -> Message:
        """Answer with description and example, or to a probe."""
        return Message(self._replica.describe(data))

    async def Infer(self, data: bytes) -> Message:
        """Answer one request, together with others that wait."""
        answer: bytes = await self._batched((data, time.monotonic_ns()))
        return Message(answer)

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
    async def _batched(self, messages: list[tuple[bytes, int]]) -> list[bytes]:
        # One thread: what arrives while the model runs becomes the next batch.
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._replica.infer, messages)


def application(
    path: str | Path,
    *,
    name: str = "model",
    replicas: int = 1,
    device: str = "cpu",
    ray_actor_options: dict[str, Any] | None = None,
) -> serve.Application:
    """Return the package at `path` as an application; `path` must lead to the same files on every node.

    `name`: of the deployment. `replicas`: how many processes have the model loaded. `device`: of each replica; with "cuda:0" ask for
    a GPU as well: `ray_actor_options={"num_gpus": 1}`. Raises ModelPackageError for a package that cannot be served to links.
    """
    package = ModelPackage.read(Path(path))
    if package.stateful:
        raise ModelPackageError(f"{path} is stateful: serve it on the robot's own machine")
    if replicas < 1:
        raise ValueError(f"replicas = {replicas} must be 1 or more: a robot cannot wait until a first replica is there")
    ongoing = max(_LEAST_ONGOING, _ONGOING * package.max_batch)
    deployment = serve.deployment(
        ModelDeployment,
        name=name,
        num_replicas=replicas,
        ray_actor_options=ray_actor_options or {},
        max_ongoing_requests=ongoing,
        max_queued_requests=_QUEUED * ongoing * replicas,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=5,
    )
    bound: serve.Application = deployment.bind(str(Path(path).resolve()), package.version, device)
    return bound


def add_servicer(servicer: Any, server: Any) -> None:
    """Register the two methods with Ray Serve's proxy, which gives the bytes of both to the application that is named."""
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name), request_deserializer=None, response_serializer=None
        )
        for name in ("Infer", "Describe")
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def grpc_options(port: int) -> gRPCOptions:
    """Return what `serve.start(grpc_options=...)` needs to serve links on `port`, on every address of the machine."""
    return gRPCOptions(port=port, grpc_servicer_functions=[f"{__name__}.{add_servicer.__name__}"])
