"""shmserve-admin bench: a load on the running service, and a table of its latencies."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shmserve.errors import ShmServeError

from .click_types import Number
from .exit_status import fail, with_exit_status
from .observation import ObservationSource, observation_options
from .target import Target, print_json, show

if TYPE_CHECKING:
    from .load_limit import Look


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

    state = _status(target)["state"]  # a missing daemon and a failed load have different exit statuses
    if state not in ("ready", "updating"):
        fail(f"service {target.name!r} is {state}: shmserve-admin wait-ready")
    try:
        source = ObservationSource.of(observation)
        load = Load(target.name, target.runtime_dir, clients, seconds, rate, source, timeout_s=timeout)
        result = load.run(lambda: _look(target))
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


def _status(target: Target) -> dict[str, Any]:
    with target.connection() as connection:
        status: dict[str, Any] = connection.call("Status")["status"]
    return status


def _look(target: Target) -> Look:
    """Return what the engine and the machine have done so far; nothing of an engine whose daemon has gone meanwhile."""
    from .load_limit import Look

    try:
        status = _status(target)
    except (ShmServeError, OSError):
        status = {"engine": None}
    return Look.of(time.monotonic(), status, Path("/proc/stat").read_text(), os.sysconf("SC_CLK_TCK"))


def _expect_daemon(target: Target) -> None:
    """Report a daemon that has gone meanwhile as every other command does."""
    target.connection().open().close()


def _show(result: dict[str, Any]) -> None:
    from rich.text import Text

    from .load_limit import use_text
    from .times_table import times_table

    mode = f"{result['rate_hz']:g} a second each" if result["rate_hz"] else "one after the other"
    print(
        f"{result['clients']} {'client' if result['clients'] == 1 else 'clients'}, {mode}, {result['seconds']:.1f} s: "
        f"{result['requests']:,} requests, {result['per_second']:,.0f} a second"
    )
    if result["clients"] > 1:
        print(f"of one client: {result['fewest_by_a_client']:,} to {result['most_by_a_client']:,}")
    if result["shortfall"] is not None:
        show(Text(result["shortfall"], style="yellow"))
    for name, count in result["errors"].items():
        show(Text(f"{count:,} x {name}", style="red"))
    show(Text(use_text(result["use"])))
    rows = {"latency": result["latency_us"], **result["stages_us"]}
    show(times_table(rows, ("mean", "p50", "p90", "p99", "p99.9", "max"), "latency"))
