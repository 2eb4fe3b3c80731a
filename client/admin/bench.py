"""shmserve-admin bench: a load on the running service, and a table of how it was carried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .exits import fail, with_exit_status
from .target import Target, print_json, show


@click.command()
@click.option("--clients", default=1, show_default=True, help="Client processes.")
@click.option("--rate", type=float, help="Requests a second of each; without, the next as soon as one is answered.")
@click.option("--seconds", default=5.0, show_default=True, help="How long.")
@click.option("--example", type=click.Path(path_type=Path), help="The observation: .npz of named arrays.")
@click.option("--timeout", default=10.0, show_default=True, help="Seconds that a request may take.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
@with_exit_status
def bench(
    target: Target,
    clients: int,
    rate: float | None,
    seconds: float,
    example: Path | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Ask the running service as robots would, and measure.

    Without --example the observation is zeros, shaped as the model's own example. With --rate, latency counts from
    when a request was due: a service that hangs makes all of them late, not one. The service answers these requests
    like any others, and its other clients wait for them.

    \b
    shmserve-admin bench --clients 4 --rate 50 --seconds 10
    """
    if not 1 <= clients <= 256:
        raise click.BadParameter("1 to 256", param_hint="--clients")
    if rate is not None and not 0 < rate <= 1e6:
        raise click.BadParameter("above 0, to 1000000", param_hint="--rate")
    if not 0 < seconds <= 86_400:
        raise click.BadParameter("above 0, to 86400", param_hint="--seconds")
    from .load import Load

    with target.connection() as connection:  # no daemon is another exit status than a load that failed
        state = connection.call("Status")["status"]["state"]
    if state not in ("ready", "updating"):
        fail(f"service {target.name!r} is {state}: shmserve-admin wait-ready")
    result = Load(target.name, target.runtime_dir, clients, seconds, rate, example, timeout_s=timeout).run()
    if target.as_json or as_json:
        print_json(result)
    else:
        _show(result)
    if not result["requests"]:
        fail("no request was answered")


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    from .status_view import micro

    mode = f"{result['rate_hz']:g} a second each" if result["rate_hz"] else "one after the other"
    print(
        f"{result['clients']} clients, {mode}, {result['seconds']:.1f} s: "
        f"{result['requests']} requests, {result['per_second']:.0f} a second"
    )
    if result["clients"] > 1:
        print(f"of one client: {result['fewest_by_a_client']} to {result['most_by_a_client']}")
    for name, count in result["errors"].items():
        print(f"{count} x {name}")
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("")
    names = ("mean", "p50", "p90", "p99", "p99.9", "max")
    for name in names:
        table.add_column(name, justify="right")
    for title, summary in (("latency", result["latency_us"]), *result["stages_us"].items()):
        if summary is not None:
            style = "bold" if title == "latency" else ""
            table.add_row(title, *(micro(summary[name]) for name in names), style=style)
    show(table)
