"""shmserve-admin completion: shell completion of commands, options and service names."""

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
    """Print the completion script for SHELL.

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
    """Return the services of this host whose names begin with `incomplete` and that this user may use."""
    from click.shell_completion import CompletionItem

    found: set[str] = set()
    runtime_dir = context.params.get("runtime_dir")
    # Every service of a runtime directory lies beside the one called "default".
    for place in {service_place("default", runtime_dir).directory.parent, Path("/run/shmserve")}:
        with contextlib.suppress(OSError):
            found |= {path.parent.name for path in place.glob(f"*/{ADMIN_SOCKET}")}
    names = sorted(name for name in found if name.startswith(incomplete) and _is_ours(name, runtime_dir))
    return [CompletionItem(name) for name in names]


def _is_ours(name: str, runtime_dir: str | None) -> bool:
    try:
        check_service_name(name)
    except ValueError:  # another user's folder may have any name
        return False
    place = service_place(name, runtime_dir)
    return place.named or not foreign_place(place)
