"""Recordings of a service, and recordings that tests write themselves."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shmserve.client.recordings.recording import RecordingWriter, RequestFacts
from tests.support.admin_command import end_admin, start_admin
from tests.support.daemon_process import Daemon, wait_until

#: The Unix time at which they began.
BEGAN_S = 1_700_000_000.25


def facts(number: int, **changed: Any) -> RequestFacts:
    """An answered request, a tenth of a second after the one before."""
    plain: dict[str, Any] = {"client": 0, "lease": 1, "sequence": number, "kind": "infer", "status": "ok"}
    plain |= {"at_s": number / 10, "model_version": "0" * 16, "error": None}
    plain |= {"queued_us": 1.0, "staged_us": 2.0, "infer_us": 3.0, "copied_us": 4.0}
    return RequestFacts(number=number, **{**plain, **changed})


def write_recording(file: Path, requests: Sequence[tuple[dict[str, Any], Any, Any]]) -> Path:
    """Write requests, each the facts that differ from `facts`, the observation and the action."""
    with RecordingWriter(file) as writer:
        writer.begin({"service": "arm", "began_s": BEGAN_S, "model": {"name": "reach", "version": "46ab"}})
        for number, (changed, observation, action) in enumerate(requests, 1):
            writer.add(facts(number, **changed), observation, action)
        writer.end({"ended": "count"})
    return file


@contextlib.contextmanager
def recording(daemon: Daemon, file: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Record during the block; its end is the recorder's, as by Ctrl-C if it has not ended before."""
    process = start_admin(daemon, "record", "--out", file, "--json", *arguments)
    wait_until("it records", lambda: daemon.status()["recording"] or process.poll() is not None)
    # The engine hears of it after the supervisor.
    wait_until("the engine has the record ring", lambda: has_record_ring(daemon) or process.poll() is not None)
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    done = end_admin(process)
    assert done.returncode == 0, done.stderr
    wait_until("nobody records", lambda: not daemon.status()["recording"])


def has_record_ring(daemon: Daemon) -> bool:
    return "shmserve-record-ring" in Path(f"/proc/{daemon.engine_pid}/maps").read_text()
