"""shmserve-admin clients, metrics and top."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import click

from .click_types import Number
from .exit_status import with_exit_status
from .target import Target, print_json, show


@click.command()
@click.pass_obj
@with_exit_status
def clients(target: Target) -> None:
    """List every client: program, user, requests.

    \b
    shmserve-admin clients
    shmserve-admin --json clients
    """
    with target.connection() as connection:
        found = [client for reply in connection.call_more("Clients", {}, timeout_s=10.0) for client in reply["clients"]]
    if target.as_json:
        print_json(found)
        return
    from .status_view import clients_table

    if found:
        show(clients_table(found))
    else:
        print("no clients")


@click.command()
@click.option("--textfile", type=click.Path(path_type=Path, readable=False), help="Write there, whole or not at all.")
@click.pass_obj
@with_exit_status
def metrics(target: Target, textfile: Path | None) -> None:
    """Print the metrics as OpenMetrics text, for Prometheus.

    \b
    shmserve-admin metrics --textfile /var/lib/node_exporter/textfile/shmserve.prom
    """
    with target.connection() as connection:
        text = "".join(reply["text"] for reply in connection.call_more("Metrics", {}, timeout_s=10.0))
    if textfile is None:
        print(text, end="")
    else:
        write_whole(textfile, without_end(text))


@click.command()
@click.option("--interval", type=Number(0.1, 60), default=1.0, show_default=True, help="Seconds between two samples.")
@click.pass_obj
@with_exit_status
def top(target: Target, interval: float) -> None:
    """Show the current rates and latencies of each client and each stage; q or Ctrl-C ends it.

    \b
    shmserve-admin top --interval 0.5
    """
    from .watch_screen import watch_rates

    watch_rates(target, interval)


def without_end(text: str) -> str:
    """Return the text without OpenMetrics' last line: node_exporter reads the older format, where it is only a comment.

    >>> without_end("a 1\\n# EOF\\n")
    'a 1\\n'
    """
    return text.removesuffix("# EOF\n")


def write_whole(path: Path, text: str) -> None:
    """Replace the file atomically: a collector always reads the old file or the new one. Raises OSError."""
    try:
        _replace(path, text)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def _replace(path: Path, text: str) -> None:
    import tempfile  # only here: the other commands start sooner without it

    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # the collector is another user
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
