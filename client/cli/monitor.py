"""shmserve-admin clients, metrics and top."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shmserve.errors import ServiceUnavailable

from .click_types import Number
from .exit_status import with_exit_status
from .target import Target, print_json, show

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


#: Name and text of the metric, as the daemon has them (daemon/api/metrics.py).
_UP = "shmserve_up 1 while a daemon answers."


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
    """Print the metrics as OpenMetrics text, or write them to a file for node_exporter.

    The file is in Prometheus' own format. Without a daemon it says so: shmserve_up is 0 then.

    \b
    shmserve-admin metrics --textfile /var/lib/node_exporter/textfile/shmserve.prom
    """
    try:
        with target.connection() as connection:
            text = "".join(reply["text"] for reply in connection.call_more("Metrics", {}, timeout_s=10.0))
    except ServiceUnavailable:
        if textfile is not None:
            # Not the last figures of a daemon that is gone, as if it were ready.
            write_whole(
                textfile, f'# HELP {_UP}\n# TYPE shmserve_up gauge\nshmserve_up{{service="{target.name}"}} 0.0\n'
            )
        raise
    if textfile is None:
        print(text, end="")
    else:
        write_whole(textfile, older_format(text))


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


def older_format(text: str) -> str:
    """Return OpenMetrics text in Prometheus' own older format: node_exporter reads no other, and refuses its types.

    >>> print(older_format("# HELP arm A fact.\\n# TYPE arm info\\narm_info{a=\\"b\\"} 1\\n# EOF\\n"), end="")
    # HELP arm_info A fact.
    # TYPE arm_info gauge
    arm_info{a="b"} 1.0
    """
    from prometheus_client import CollectorRegistry, generate_latest  # only here: the import takes a tenth of a second
    from prometheus_client.openmetrics.parser import text_string_to_metric_families
    from prometheus_client.registry import Collector

    class Parsed(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from text_string_to_metric_families(text)  # type: ignore[no-untyped-call]

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Parsed())
    return generate_latest(registry).decode()


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
