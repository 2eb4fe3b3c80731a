"""shmserve-admin config and reload."""

from __future__ import annotations

import click

from .exit_status import with_exit_status
from .target import Target, print_json, show


@click.command()
@click.pass_obj
@with_exit_status
def config(target: Target) -> None:
    """Show every setting of the running daemon, and its origin.

    Flags win over SHMSERVE_<KEY> in its environment, over /etc/shmserve/<name>.toml, over the defaults.

    \b
    shmserve-admin config
    """
    with target.connection() as connection:
        found = connection.call("Config")
    if target.as_json:
        print_json(found)
        return
    from .settings_view import render

    show(render(found["settings"]))
    if found["file"] is None:
        print("No configuration file.")


@click.command()
@click.pass_obj
@with_exit_status
def reload(target: Target) -> None:
    """Read the configuration file again; print the changes in force, and those that need a restart.

    \b
    shmserve-admin --name arm reload
    """
    with target.connection() as connection:
        found = connection.call("Reload")
    if target.as_json:
        print_json(found)
        return
    from .settings_view import words

    for key, value in found["applied"].items():
        print(f"{key} = {words(value)}")
    for key, value in found["needs_restart"].items():
        print(f"{key} = {words(value)}  (after a restart)")
    if not found["applied"] and not found["needs_restart"]:
        print("nothing has changed")
