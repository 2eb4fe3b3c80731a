"""shmserve-admin record: a file of the requests and replies of a service."""

from __future__ import annotations

import signal
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .click_types import Number
from .exit_status import fail, with_exit_status
from .target import Target, print_json, progress_line

if TYPE_CHECKING:
    from ..recordings.recorder import Recorded

_MIB = 1 << 20


@click.command()
@click.option("--out", "path", type=click.Path(path_type=Path, readable=False), required=True, help="The file to make.")
@click.option("--client", type=int, help="Only this one; `shmserve-admin clients` shows its number.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many requests.")
@click.option("--seconds", type=Number(min=0, min_open=True), help="Stop after this many seconds.")
@click.option(
    "--buffer-mib",
    type=click.IntRange(1, 65536),
    default=64,
    show_default=True,
    help="Memory for entries not yet written.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
@with_exit_status
def record(
    target: Target,
    path: Path,
    client: int | None,
    count: int | None,
    seconds: float | None,
    buffer_mib: int,
    as_json: bool,
) -> None:
    """Keep observations and actions with their times, as they pass.

    Until --count or --seconds is reached, Ctrl-C, or the daemon stops. Robots never wait for it: where the disk is
    too slow, requests are left out and counted. `shmserve-admin replay` asks a model the same again.

    \b
    shmserve-admin record --out today.rec --seconds 60
    shmserve-admin --name arm record --out one.rec --client 0 --count 500
    """
    from shmserve.record_ring import RecordRingReader

    from ..recordings.recorder import Recorder
    from ..recordings.recording import RecordingWriter

    stops: list[int] = []
    before = {
        number: signal.signal(number, lambda got, _: stops.append(got)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with target.connection() as connection:
            record_ring = RecordRingReader(buffer_mib * _MIB)
            try:
                began_ns, began_s = time.monotonic_ns(), time.time()
                replies = connection.call_more("Record", {"client": client}, fd=record_ring.descriptor)
                first = next(replies)  # a refusal comes before a file is made
                with RecordingWriter(path) as writer:
                    writer.begin(
                        {
                            "service": target.name,
                            "host": socket.gethostname(),
                            "began_s": began_s,
                            "only_client": client,
                            "model": first["model"],
                        }
                    )
                    recorder = Recorder(record_ring, writer, began_ns)
                    with progress_line(_shown) as progress:
                        why = recorder.run(
                            connection.reply_stream(replies),
                            count=count,
                            seconds=seconds,
                            stopped=lambda: bool(stops),
                            progress=progress,
                        )
                    connection.close()  # the engine stops writing
                    recorder.finish(count)
                    result = recorder.recorded()
                    writer.end({"ended": why, **asdict(result)})
            finally:
                record_ring.close()
    except FileExistsError:
        fail(f"{path} exists: record into another file, or remove it")
    except OSError as error:
        if error.errno is None:  # the error already has a full text, as for a socket that may not be opened
            raise
        fail(f"{path} cannot be written: {error.strerror}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    found: dict[str, Any] = {"file": str(path), "ended": why, **asdict(result)}
    if target.as_json or as_json:
        print_json(found)
    else:
        print(f"{path}: {_shown(result)}; {'stopped' if why == 'stopped' else f'ended: {why}'}")


def _shown(result: Recorded) -> str:
    text = f"{result.requests} requests, {result.size_bytes / _MIB:.1f} MiB, {result.seconds:.1f} s"
    if result.dropped:
        text += f", {result.dropped} left out because the disk was too slow"
    if result.pickled:
        text += f", {result.pickled} left out because they hold Python objects"
    if result.unreadable:
        text += f", {result.unreadable} unreadable"
    return text
