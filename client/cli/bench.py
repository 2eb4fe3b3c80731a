"""shmserve-admin bench: a load on the running service, and a table of its latencies."""

from __future__ import annotations

from typing import Any

import click

from .click_types import Number
from .exit_status import fail, with_exit_status
from .observation import ObservationSource, observation_options
from .target import Target, print_json, show


@click.command()
@click.option("--clients", type=click.IntRange(1, 256), default=1, show_default=True, help="Client processes.")
@click.option(
    "--rate",
    type=Number(0, 1e6, min_open=True),
    help="Requests a second of each; without, the next as soon as one is answered.",
)
@click.option("--seconds", type=Number(0, 86_400, min_open=True), default=5.0, show_default=True, help="How long.")
@observation_options
@click.option(
    "--timeout", type=Number(0, 86_400), default=10.0, show_default=True, help="Seconds that a request may take."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
@with_exit_status
def bench(
    target: Target,
    /,
    clients: int,
    rate: float | None,
    seconds: float,
    timeout: float,
    as_json: bool,
    **observation: Any,
) -> None:
    """Ask the running service as robots would, and measure.

    Without --example the observation is zeros, shaped as the model's own example, or else as the first request that it has served;
    --shape, --image and --set give single entries. With --rate, latency counts from
    when a request was due: a service that hangs makes all of them late, not one. The service answers these requests
    like any others, and its other clients wait for them.

    \b
    shmserve-admin bench --clients 4 --rate 50 --seconds 10
    shmserve-admin bench --shape observation.image:480x640x3:uint8 --set task=fold
    """
    from .load import Load, LoadFailed

    with target.connection() as connection:  # a missing daemon and a failed load have different exit statuses
        state = connection.call("Status")["status"]["state"]
    if state not in ("ready", "updating"):
        fail(f"service {target.name!r} is {state}: shmserve-admin wait-ready")
    try:
        source = ObservationSource.of(observation)
        result = Load(target.name, target.runtime_dir, clients, seconds, rate, source, timeout_s=timeout).run()
    except LoadFailed:
        _expect_daemon(target)
        raise
    if target.as_json or as_json:
        print_json(result)
    else:
        _show(result)
    if "ServiceUnavailable" in result["errors"]:
        _expect_daemon(target)
    if not result["requests"]:
        fail("no request was answered")


def _expect_daemon(target: Target) -> None:
    """Report a daemon that has gone meanwhile as every other command does."""
    target.connection().open().close()


def _show(result: dict[str, Any]) -> None:

    from .responsive_table import bare_table
    from .status_view import micro

    mode = f"{result['rate_hz']:g} a second each" if result["rate_hz"] else "one after the other"
    print(
        f"{result['clients']} {'client' if result['clients'] == 1 else 'clients'}, {mode}, {result['seconds']:.1f} s: "
        f"{result['requests']} requests, {result['per_second']:.0f} a second"
    )
    if result["clients"] > 1:
        print(f"of one client: {result['fewest_by_a_client']} to {result['most_by_a_client']}")
    for name, count in result["errors"].items():
        print(f"{count} x {name}")
    table = bare_table()
    table.add_column("")
    names = ("mean", "p50", "p90", "p99", "p99.9", "max")
    for name in names:
        table.add_column(name, justify="right")
    for title, summary in (("latency", result["latency_us"]), *result["stages_us"].items()):
        if summary is not None:
            style = "bold" if title == "latency" else ""
            table.add_row(title, *(micro(summary[name]) for name in names), style=style)
    show(table)
