"""shmserve-admin replay: send the requests of a recording to a model, and compare the replies."""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .click_types import Number
from .exit_status import fail, with_exit_status
from .target import Target, print_json, progress_bar, progress_line, show

if TYPE_CHECKING:
    from ..recordings import Recording

#: As for the [warmup] expected of a package.
_ATOL, _RTOL = 1e-4, 1e-3


@click.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--model",
    type=click.Path(path_type=Path, readable=False),
    help="This package, a directory or a tar, instead of the serving model.",
)
@click.option("--device", help="Where --model runs: cpu, cuda:0 ...  [default: cpu]")
@click.option("--atol", type=Number(min=0), default=_ATOL, show_default=True, help="How far floats may be off,")
@click.option("--rtol", type=Number(min=0), default=_RTOL, show_default=True, help="and of the recorded value.")
@click.option("--count", type=click.IntRange(min=1), help="Only this many requests, from the first.")
@click.option("--paced", is_flag=True, help="With the gaps of the recording, not one after the other.")
@click.option("--partial", is_flag=True, help="Use the complete part of a recording that was cut off.")
@click.option(
    "--timeout", type=Number(0, 86_400), default=60.0, show_default=True, help="Seconds that a request may take."
)
@click.option(
    "--load-timeout", type=Number(0, 86_400), default=600.0, show_default=True, help="Seconds that --model may load."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
@with_exit_status
def replay(
    target: Target,
    file: Path,
    model: Path | None,
    device: str | None,
    atol: float,
    rtol: float,
    count: int | None,
    paced: bool,
    partial: bool,
    timeout: float,
    load_timeout: float,
    as_json: bool,
) -> None:
    """Send the requests in FILE again and compare the replies; exit status 1 if they differ.

    Without --model the serving model gets them, as from any other client. With --model a temporary daemon loads the
    package and ends with this command; the service is not touched, and need not run.

    \b
    shmserve-admin replay today.rec --model models/new
    shmserve-admin --name arm replay today.rec --atol 0 --rtol 0
    """
    from ..recordings import Recording
    from ..recordings.replay import Replay

    if device is not None and model is None:
        raise click.BadParameter("it is for --model; the serving model stays where it is", param_hint="--device")
    with ExitStack() as stack:
        recording = stack.enter_context(Recording(file, partial=partial))
        name, runtime_dir = target.name, target.runtime_dir
        if model is not None:
            name, runtime_dir = _candidate(stack, model, device, load_timeout)
        total = min(len(recording), count or len(recording))
        progress = stack.enter_context(progress_bar("replaying", total))
        replaying = Replay(name, runtime_dir, atol, rtol, timeout, everything=model is not None, paced=paced)
        result = {"file": str(file), **replaying.run(islice(recording, count), progress)}
        stack.pop_all().close()
        if target.as_json or as_json:
            print_json(result)
        else:
            _show(recording, result)
    if not result["compared"]:
        fail(f"{file}: no request has a reply both in the recording and now, so there is nothing to compare")
    if not result["same"]:
        fail("the answers differ" if not result["errors"] else "requests failed that had been answered")


def _candidate(stack: ExitStack, model: Path, device: str | None, load_timeout: float) -> tuple[str, str]:
    from .candidate import CandidateService
    from .update import open_package

    os.close(open_package(model))  # reject a path that is not a package before starting a daemon
    with progress_line(str) as tell:
        tell(f"loading {model}")
        service = stack.enter_context(CandidateService(model, device, load_timeout))
    return service.name, str(service.runtime_dir)


def _show(recording: Recording, result: dict[str, Any]) -> None:
    from rich.text import Text

    from .responsive_table import bare_table
    from .times_table import times_table

    model = recording.about.get("model") or {}
    print(
        f"recorded  {len(recording)} requests of service {recording.about.get('service')}, version {model.get('version')}"
    )
    print(f"replayed  {result['requests']} requests, version {', '.join(result['versions']) or 'none'}")
    if result["skipped"]:
        print(f"{result['skipped']} requests without a recorded reply are not sent to a serving model")
    for kind, number in result["errors"].items():
        print(f"{number} x {kind}, first {result['error_examples'][kind]}")
    table = bare_table()
    for column in ("action", "compared", "differ", "max abs", "max rel", "first"):
        table.add_column(column, justify="left" if column in ("action", "first") else "right")
    for name, found in result["fields"].items():
        first = "" if found["first"] is None else f"request {found['first']} {found['what'] or ''}"
        table.add_row(
            Text(name),
            str(found["compared"]),
            Text(str(found["differ"]), style="red" if found["differ"] else ""),
            f"{found['max_abs']:.3g}",
            f"{found['max_rel']:.3g}",
            Text(first.strip()),
        )
    show(table)
    show(times_table(result["latency_us"], ("p50", "p90", "p99", "max")))
