"""shmserve-admin remote: models on a Ray cluster, and the links to them."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from shmserve.directories import ADMIN_SOCKET, service_place
from shmserve.errors import ServiceUnavailable, ShmServeError

from .click_types import Number
from .connection import AdminConnection
from .exit_status import fail, with_exit_status
from .target import Target, print_json

_REACH_S = 5.0
_PATH = click.Path(path_type=Path, readable=False)


@click.command()
@click.argument("action", type=click.Choice(["deploy", "status", "retire"]))
@click.argument("what", required=False)
@click.option("--cluster", default="auto", show_default=True, help="Address of the Ray cluster; auto: on this machine.")
@click.option("--replicas", type=click.IntRange(min=1), default=1, show_default=True, help="Processes with the model.")
@click.option("--device", default="cpu", show_default=True, help="Device of each replica.")
@click.option("--gpus", type=Number(min=0, max=64), default=0.0, help="GPUs of each replica; a fraction shares one.")
@click.option("--cpus", type=Number(min=0, max=1024), default=1.0, show_default=True, help="CPUs of each replica.")
@click.option("--port", type=click.IntRange(1, 65535), default=9000, show_default=True, help="Ray Serve's gRPC port.")
@click.option(
    "--http-port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Its HTTP port, on 127.0.0.1."
)
@click.option("--out", type=_PATH, metavar="DIR", help="Write the link package here.")
@click.option("--fallback", type=_PATH, metavar="DIR", help="Package that answers on the robot; copied into the link.")
@click.option(
    "--target",
    "uplink",
    default="unix:///run/shmserve/uplink.sock",
    show_default=True,
    help="Socket of the proxy on the robot.",
)
@click.option("--budget", type=Number(min=0.001, max=10), default=0.1, show_default=True, help="Seconds for a request.")
@click.option("--force", is_flag=True, help="Retire what a service on this machine links to.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
@with_exit_status
def remote(
    target: Target,
    action: str,
    what: str | None,
    cluster: str,
    replicas: int,
    device: str,
    gpus: float,
    cpus: float,
    port: int,
    http_port: int,
    out: Path | None,
    fallback: Path | None,
    uplink: str,
    budget: float,
    force: bool,
    as_json: bool,
) -> None:
    """Deploy a package on a Ray cluster, and write the link package for the robots.

    deploy PACKAGE runs it as the application NAME-VERSION beside those that run already, asks it for its example, and writes
    the link. status lists the applications. retire APPLICATION ends one that no service on this machine links to.

    \b
    shmserve-admin remote deploy models/arm --replicas 2 --out arm-link --fallback models/hold
    shmserve-admin remote status
    shmserve-admin remote retire arm-3f9c2d17
    """
    if (what is None) != (action == "status"):
        raise click.UsageError(f"remote {action} {'takes no more words' if what else 'needs one more word'}")
    as_json = target.as_json or as_json
    if action == "retire" and not force:
        assert what is not None
        _check_unused(what, target.runtime_dir)
    scale = _scale()
    _check_reachable(cluster)
    scale.connect(cluster)
    if action == "status":
        found = scale.applications()
        if as_json:
            print_json(found)
        elif not found:
            print("the cluster runs no application of shmserve")
        for each in () if as_json else found:
            running = ", ".join(f"{count} {state.lower()}" for state, count in each["replicas"].items())
            print(f"{each['application']}  {each['status'].lower()}  {running}  {each['message']}".rstrip())
        return
    assert what is not None
    if action == "retire":
        scale.retire(what)
        print_json({"retired": what}) if as_json else print(f"{what} is retired")
        return
    path = Path(what)
    done = scale.deploy(
        path,
        replicas=replicas,
        device=device,
        gpus=gpus,
        cpus=cpus,
        port=port,
        http_port=http_port,
        report=(lambda text: None) if as_json else print,
    )
    if out is not None:
        name = done.application.rpartition("-")[0]
        scale.write_link(out, done, name=name, target=uplink, budget_s=budget, fallback=fallback)
    if as_json:
        print_json({**vars(done), "link": None if out is None else str(out)})
        return
    print(
        f"{done.application} answers, version {done.version}, {1000 * done.answer_s:.1f} ms for its example from here"
    )
    if out is not None:
        print(f"on the robot, with {out} copied there: shmserve-admin update-model {out.name}")


def _scale() -> Any:
    """Import what deploys, which needs Ray and the daemon's side: the client's side stays free of both."""
    # A cluster takes only who has its token. Ray itself looks for one when it starts a cluster, not when it joins one.
    if "RAY_AUTH_MODE" not in os.environ and (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        return importlib.import_module("shmserve.scale.deploy")
    except ImportError as error:
        fail(f"remote needs Ray ({error}): pip install 'shmserve[ray]' on the machine that deploys")


def _check_reachable(cluster: str) -> None:
    """Raise ServiceUnavailable for a HOST:PORT that accepts no connection: Ray itself would try for minutes."""
    host, _, port = cluster.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return  # "auto", and forms that Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise ServiceUnavailable(
            f"no Ray cluster at {cluster}: {error}. Start one there (ray start --head), or give --cluster the address that it printed"
        ) from error


def _check_unused(application: str, runtime_dir: str | None) -> None:
    for name, remote in _links(runtime_dir):
        if remote["application"] == application:
            fail(f"service {name!r} on this machine links to {application}: update it first, or use --force")


def _links(runtime_dir: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the services of this machine that serve a link, and the link."""
    for place in {service_place("default", runtime_dir).directory.parent, Path("/run/shmserve")}:
        for admin in sorted(place.glob(f"*/{ADMIN_SOCKET}")):
            try:
                with AdminConnection(admin.parent.name, str(place)) as connection:
                    model = connection.status()["model"]
            except (OSError, ShmServeError):
                continue
            if model is not None and model.get("remote") is not None:
                yield admin.parent.name, model["remote"]
