"""Deployment of a package on a Ray cluster, and the link package that a robot's daemon serves. Needs the extra `ray`."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve

from shmserve.daemon.engine.models.uplink import DESCRIBE, INFER, GrpcUplink, UplinkError
from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError, ServiceUnavailable
from shmserve.message import Kind, Packer, Request, read_reply
from shmserve.protocol import Status

from .ray import application, grpc_options

#: Of an application's name: its package's name, then as much of its version.
_VERSION_DIGITS = 8
_ASK_S = 10.0
_NAME = re.compile(r"[^A-Za-z0-9_]+")


@dataclass(frozen=True)
class Deployed:
    """A package that runs on the cluster."""

    application: str
    version: str
    #: Median of a few requests with the example, from this machine (seconds).
    answer_s: float


def connect(address: str) -> None:
    """Join the cluster at `address` ("auto": the one that runs on this machine); raises ServiceUnavailable."""
    try:
        ray.init(address=address, namespace="serve", log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "auto":
            raise ServiceUnavailable(
                "no Ray cluster runs on this machine: start one (ray start --head), or name another one with --cluster HOST:PORT"
            ) from error
        raise ServiceUnavailable(
            f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}. Start one (ray start --head), and use its token "
            "(ray get-auth-token on the head node)"
        ) from error


def application_name(package: ModelPackage) -> str:
    """Return NAME-VERSION8: each version is a separate application, so that an update replaces no replica."""
    return f"{_NAME.sub('-', package.name).strip('-') or 'model'}-{package.version[:_VERSION_DIGITS]}"


def deploy(
    path: Path,
    *,
    replicas: int,
    device: str,
    gpus: float,
    cpus: float,
    port: int,
    http_port: int,
    report: Callable[[str], object],
) -> Deployed:
    """Run the package beside those that run already, wait until it is ready, and ask its example; raises ModelPackageError."""
    package = ModelPackage.read(path)
    name = application_name(package)
    serve.start(http_options={"host": "127.0.0.1", "port": http_port}, grpc_options=grpc_options(port))
    options = {"num_cpus": cpus, **({"num_gpus": gpus} if gpus else {})}
    report(f"{name}: {replicas} replicas are started")
    try:
        running = application(path, replicas=replicas, device=device, ray_actor_options=options)
        # A separate prefix, because Serve's proxy knows only applications that have one.
        serve.run(running, name=name, route_prefix=f"/{name}")
    except RuntimeError as error:
        serve.delete(name)
        raise ModelPackageError(f"{path} cannot run on the cluster: {error}") from error
    report(f"{name}: it is asked for its example")
    return Deployed(name, package.version, _ask(f"127.0.0.1:{port}", name, package.version))


def _ask(target: str, name: str, version: str) -> float:
    """Ask for the example a few times; return the median time (s). Raises ModelPackageError."""
    uplink, packer = GrpcUplink(target, name), Packer("observation")
    times = []
    try:
        data = uplink.ask(DESCRIBE, packer.request(Request(Kind.DESCRIBE)), _ASK_S, "deploy")
        head, tree = read_reply(data)
        if head.version != int(version, 16):
            raise ModelPackageError(f"{name} is version {head.version:016x} instead of {version}")
        for number in range(5):
            request = packer.request(Request(Kind.INFER, version=head.version, number=number), tree["example"])
            began_s = time.monotonic()
            answer, action = read_reply(uplink.ask(INFER, request, _ASK_S, "deploy"))
            times.append(time.monotonic() - began_s)
            if answer.status != Status.OK:
                raise ModelPackageError(f"{name} fails on its own example: {' '.join(action)}")
    except UplinkError as error:
        raise ModelPackageError(f"{name} is deployed, but does not answer at {target}: {error}") from error
    finally:
        uplink.close()
    return sorted(times)[len(times) // 2]


def applications() -> list[dict[str, Any]]:
    """Return the applications of this package: name, version, status, replicas that run."""
    found = []
    for name, state in serve.status().applications.items():
        running = [deployment for kind, deployment in state.deployments.items() if kind == "model"]
        if running:
            replicas = dict(running[0].replica_states)
            found.append(
                {"application": name, "status": str(state.status.value), "replicas": replicas, "message": state.message}
            )
    return found


def retire(name: str) -> None:
    """End an application; raises ModelPackageError if there is none of that name."""
    if name not in serve.status().applications:
        raise ModelPackageError(f"the cluster runs no application {name!r}: see shmserve-admin remote status")
    serve.delete(name)


def write_link(
    out: Path, deployed: Deployed, *, name: str, target: str, budget_s: float, fallback: Path | None
) -> None:
    """Write the link package, with a copy of the fallback in it; raises ModelPackageError, as for what exists already."""
    if out.exists():
        raise ModelPackageError(f"{out} exists already: name another directory for the link package")
    out.mkdir(parents=True)
    table: dict[str, Any] = {
        "target": target,
        "application": deployed.application,
        "version": deployed.version,
        "budget_s": budget_s,
    }
    if fallback is not None:
        shutil.copytree(fallback, out / "local", ignore=shutil.ignore_patterns("__pycache__"))
        table["fallback"] = "local"
    lines = ["[model]", f"name = {json.dumps(name)}", 'format = "remote"', "", "[remote]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    (out / "model.toml").write_text("\n".join(lines) + "\n")
    ModelPackage.read(out)
