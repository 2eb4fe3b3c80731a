"""shmserve-admin completion: what a shell needs to complete commands, options and names of services."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shmserve.directories import ADMIN_SOCKET, check_service_name, service_place
from shmserve.service_owner import foreign_place

from .exit_status import with_exit_status

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PROGRAM = "shmserve-admin"
_VARIABLE = "_SHMSERVE_ADMIN_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
@with_exit_status
def completion(context: click.Context, shell: str) -> None:
    """Print what SHELL reads to complete this command.

    \b
    shmserve-admin completion bash > ~/.local/share/bash-completion/completions/shmserve-admin
    shmserve-admin completion zsh > ~/.zfunc/_shmserve-admin
    shmserve-admin completion fish > ~/.config/fish/completions/shmserve-admin.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, PROGRAM, _VARIABLE).source())


def complete_services(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The services of this host whose names begin so, without those that this user would be refused."""
    from click.shell_completion import CompletionItem

    found: set[str] = set()
    runtime_dir = context.params.get("runtime_dir")
    # Where the service called "default" would be, its neighbours are.
    for place in {service_place("default", runtime_dir).directory.parent, Path("/run/shmserve")}:
        with contextlib.suppress(OSError):
            found |= {path.parent.name for path in place.glob(f"*/{ADMIN_SOCKET}")}
    names = sorted(name for name in found if name.startswith(incomplete) and _is_ours(name, runtime_dir))
    return [CompletionItem(name) for name in names]


def _is_ours(name: str, runtime_dir: str | None) -> bool:
    try:
        check_service_name(name)
    except ValueError:  # a stranger's folder may be called anything
        return False
    place = service_place(name, runtime_dir)
    return place.named or not foreign_place(place)
