"""Load on a running service: client processes that begin together, and their measurements."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shmserve.errors import ShmServeError

from .load_limit import Look, Use, shortfall
from .load_process import COLUMNS
from .observation import ObservationSource
from .target import progress_bar

#: Between the readiness of all clients and their common begin.
_HEAD_START_NS = 100_000_000
#: Between two updates of the progress.
_LOOK_S = 0.1
_PERCENTILES = (50, 90, 99, 99.9)


class LoadFailed(ShmServeError):
    """A client of the load could not begin, or ended early; the message is that client's."""


@dataclass(frozen=True)
class Load:
    """The load: which observation, how often, by how many clients."""

    name: str
    runtime_dir: str | None
    clients: int
    seconds: float
    #: Requests a second of each client; None: the next one as soon as the last is answered.
    rate_hz: float | None
    observation: ObservationSource
    warmup: int = 20
    timeout_s: float = 10.0

    def run(self, look: Callable[[], Look]) -> dict[str, Any]:
        """Run the load; return the result as `bench --json` prints it. Raises LoadFailed.

        `look` is called when the clients begin and when they have ended.
        """
        order = {
            "name": self.name,
            "runtime_dir": self.runtime_dir,
            "observation": self.observation.to_json(),
            "warmup": self.warmup,
            "timeout_s": self.timeout_s,
            "seconds": self.seconds,
            "rate_hz": self.rate_hz,
        }
        with ExitStack() as stack:
            processes = [_start(stack) for _ in range(self.clients)]
            for process in processes:
                _write(process, json.dumps(order))
            for process in processes:
                _expect_ready(process)
            begin_ns = time.monotonic_ns() + _HEAD_START_NS
            for process in processes:
                _write(process, str(begin_ns))
            time.sleep(max(0.0, (begin_ns - time.monotonic_ns()) / 1e9))
            before = look()
            self._wait(begin_ns, processes)
            after = look()
            measured = [_measured(process) for process in processes]
        client_cpus = max(found["cpu_s"] / found["took_s"] for found, _ in measured)
        result = self._result(measured) | {"use": Use.between(before, after, client_cpus).to_json()}
        return result | {"shortfall": shortfall(result)}

    def _wait(self, begin_ns: int, processes: list[subprocess.Popen[bytes]]) -> None:
        """Return when the time is over or a client has ended; show a progress bar on a terminal."""
        with progress_bar("asking", round(self.seconds, 1)) as progress:
            while (elapsed_s := (time.monotonic_ns() - begin_ns) / 1e9) < self.seconds:
                progress(round(max(0.0, elapsed_s), 1))
                # A client that has ended its load writes its measurements, and waits until they are read.
                if any(process.poll() is not None for process in processes):
                    break
                time.sleep(_LOOK_S)

    def _result(self, measured: list[tuple[dict[str, Any], npt.NDArray[np.float64]]]) -> dict[str, Any]:
        rows = np.concatenate([rows for _, rows in measured])
        errors: Counter[str] = Counter()
        for found, _ in measured:
            errors.update(found["errors"])
        took_s = max(found["took_s"] for found, _ in measured)
        columns = dict(zip(COLUMNS, rows.T, strict=True))
        inside = columns["queued"] + columns["staged"] + columns["infer"] + columns["copied"]
        stages = {
            "queued": columns["queued"],
            "staged": columns["staged"],
            "infer": columns["infer"],
            "copied": columns["copied"],
            # The rest of the round trip: encoding, decoding, and both wake-ups.
            "client": np.maximum(columns["round_trip"] - inside, 0.0),
        }
        return {
            "clients": self.clients,
            "seconds": round(took_s, 3),
            "rate_hz": self.rate_hz,
            "requests": len(rows),
            "errors": dict(errors),
            "per_second": round(len(rows) / took_s, 1),
            "fewest_by_a_client": min(len(rows) for _, rows in measured),
            "most_by_a_client": max(len(rows) for _, rows in measured),
            "latency_us": _summary(columns["latency"]),
            "round_trip_us": _summary(columns["round_trip"]),
            "stages_us": {name: _summary(values) for name, values in stages.items()},
        }


def _summary(values: npt.NDArray[np.float64]) -> dict[str, float] | None:
    if not values.size:
        return None
    found = {f"p{percent:g}": round(float(np.percentile(values, percent)), 2) for percent in _PERCENTILES}
    return {"mean": round(float(values.mean()), 2), **found, "max": round(float(values.max()), 2)}


def _start(stack: ExitStack) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "shmserve.client.cli.load_process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # harmless for a process that has ended
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    process.wait()


def _write(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # its last message says more than this error


def _expect_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    said = process.stdout.readline().decode().strip()
    if said != "ready":
        raise LoadFailed(_reason(said))


def _measured(process: subprocess.Popen[bytes]) -> tuple[dict[str, Any], npt.NDArray[np.float64]]:
    assert process.stdout is not None
    said = process.stdout.readline().decode()
    rest = process.stdout.read()
    if not rest:
        raise LoadFailed(_reason(said))
    return json.loads(said), np.load(io.BytesIO(rest), allow_pickle=False)


def _reason(said: str) -> str:
    try:
        return f"a client of the load could not ask: {json.loads(said)['error']}"
    except (ValueError, KeyError, TypeError):
        return "a client of the load ended without a message; its output is above"
