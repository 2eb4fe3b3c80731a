"""shmserve-admin: arguments, one call on the admin socket, and what to print of the answer."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

try:
    import click
except ModuleNotFoundError:  # the client alone is installed
    sys.exit("shmserve-admin needs the daemon's packages: pip install 'shmserve[daemon]'")

from shmserve import __version__

from .connection import AdminConnection
from .exits import REFUSED, fail, with_exit_status


@dataclass(frozen=True)
class Target:
    """Which service, and how to print."""

    name: str
    runtime_dir: str | None
    as_json: bool

    def connection(self) -> AdminConnection:
        return AdminConnection(self.name, self.runtime_dir)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--name", default="default", show_default=True, help="Name of the service.")
@click.option("--runtime-dir", type=click.Path(), help="Where the daemon's sockets are, if not at the usual place.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.version_option(__version__, prog_name="shmserve-admin")
@click.pass_context
def main(context: click.Context, name: str, runtime_dir: str | None, as_json: bool) -> None:
    """Look after a running shmserve service.

    Exit status: 0 done, 1 refused or failed, 2 usage, 3 no daemon.
    """
    context.obj = Target(name, runtime_dir, as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
@with_exit_status
def status(target: Target, as_json: bool) -> None:
    """Is it healthy, what does it serve, who is connected, how fast."""
    with target.connection() as connection:
        found = connection.call("Status")["status"]
    if target.as_json or as_json:
        print_json(found)
        return
    from rich.console import Console  # only here: a program that asks for JSON does not wait for it

    from .status_view import render

    Console(highlight=False).print(render(found))


@main.command("wait-ready")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait at most.")
@click.pass_obj
@with_exit_status
def wait_ready(target: Target, timeout: float) -> None:
    """Return once the service answers requests.

    Waits for the daemon itself, too: it may be started afterwards.
    """
    from .waiting import wait_until_ready

    found = wait_until_ready(target.connection, timeout)
    if target.as_json:
        print_json(found)
    if found["state"] != "ready":
        reason = f": {found['error']}" if found["error"] else ""
        fail(f"service {target.name!r} is {found['state']} after {timeout:g} s{reason}", REFUSED)


if __name__ == "__main__":
    main()
