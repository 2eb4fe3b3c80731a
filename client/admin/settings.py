"""shmserve-admin config and reload."""

from __future__ import annotations

from typing import Any

import click

from shmserve.toml_value import toml_value

from .exits import with_exit_status
from .target import Target, print_json, show


@click.command()
@click.pass_obj
@with_exit_status
def config(target: Target) -> None:
    """Every setting of the running daemon, and where it comes from.

    Flags win over SHMSERVE_<KEY> in its environment, over /etc/shmserve/<name>.toml, over the defaults.

    \b
    shmserve-admin config
    """
    with target.connection() as connection:
        found = connection.call("Config")
    if target.as_json:
        print_json(found)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("setting", "value", "from", ""):
        table.add_column(name, no_wrap=name == "setting")
    for setting in found["settings"]:
        waiting = setting["waiting"]
        note = Text("" if waiting is None else f"{_text(waiting)} after a restart", style="yellow")
        if waiting is None and setting["live"]:
            note = Text("live", style="dim")
        chosen = "" if setting["origin"] == "default" else "bold"
        table.add_row(setting["key"], Text(_text(setting["value"]), style=chosen), Text(setting["origin"]), note)
    show(table)
    if found["file"] is None:
        print("No configuration file.")


@click.command()
@click.pass_obj
@with_exit_status
def reload(target: Target) -> None:
    """Read the configuration file again; say what is in force now and what needs a restart.

    \b
    shmserve-admin --name arm reload
    """
    with target.connection() as connection:
        found = connection.call("Reload")
    if target.as_json:
        print_json(found)
        return
    for key, value in found["applied"].items():
        print(f"{key} = {_text(value)}")
    for key, value in found["needs_restart"].items():
        print(f"{key} = {_text(value)}  (after a restart)")
    if not found["applied"] and not found["needs_restart"]:
        print("nothing has changed")


def _text(value: Any) -> str:
    return "-" if value is None else toml_value(value)
