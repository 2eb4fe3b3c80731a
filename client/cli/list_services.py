"""shmserve-admin list: the services of this host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from .exit_status import with_exit_status
from .target import Target, print_json, show

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from .host_services import HostService

_COLOURS = {"ready": "green", "updating": "green", "failed": "bold red", "stale": "yellow", "hidden": "dim"}


@click.command("list")
@click.pass_obj
@with_exit_status
def list_services(target: Target) -> None:
    """List the services of this host, with those of other users as far as this user may see them.

    Searches the usual runtime directories and the enabled systemd units; with --runtime-dir that directory alone. It starts no service.

    \b
    shmserve-admin list
    shmserve-admin list --json
    """
    from .host_services import host_services

    found = host_services(target.runtime_dir)
    if target.as_json:
        print_json([service.to_json() for service in found])
        return
    if not found:
        where = target.runtime_dir or "this host's runtime directories and systemd units"
        print(f"no services in {where}: start one with shmserved --model-path DIR --name NAME")
        return
    show(render(found))
    for service in found:
        if service.note:
            print(f"{service.name}: {service.state}: {service.note}")


def render(services: Sequence[HostService]) -> RenderableType:
    """Return a line for each service."""
    from .responsive_table import FirstThatFits, without

    rows = [_cells(service) for service in services]
    columns = ("name", "state", "model", "user", "pid", "since", "unit", "directory")
    return FirstThatFits(
        partial(_table, names, rows) for names in without(columns, "unit", "since", "directory", "pid")
    )


def _cells(service: HostService) -> dict[str, Text]:
    from rich.text import Text

    found = service.to_json()
    began = "-" if service.since_s is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(service.since_s))
    return {
        "name": Text(service.name, "bold"),
        "state": Text(service.state, _COLOURS.get(service.state, "")),
        "model": Text("-" if service.model is None else " ".join(service.model)),
        "user": Text("-" if service.uid is None else found["user"] or f"uid {service.uid}"),
        "pid": Text("-" if service.pid is None else str(service.pid)),
        "since": Text(began),
        "unit": Text(service.unit or "-"),
        "directory": Text(str(service.directory)),
    }


def _table(names: Sequence[str], rows: Sequence[dict[str, Text]], text_width: int | None) -> Table:
    from .responsive_table import bare_table

    table = bare_table()
    for name in names:
        text = name in ("model", "directory")
        table.add_column(
            name,
            justify="right" if name == "pid" else "left",
            no_wrap=not text,
            overflow="fold",
            max_width=text_width if text else None,
        )
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table
