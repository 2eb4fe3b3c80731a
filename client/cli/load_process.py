"""One client process of a load. `python -m shmserve.client.cli.load_process`.

Reads one JSON line with the load, prints "ready", reads the begin (CLOCK_MONOTONIC ns), sends requests, and writes one
JSON line and the measurements as a .npy of float64 microseconds, a row for each request.
"""

from __future__ import annotations

import io
import json
import sys
import time
from typing import Any

import numpy as np

from shmserve.client import ShmClient
from shmserve.errors import ShmServeError

from .observation import ObservationSource, observation_errors

#: Columns of the measurements. `latency` counts from when the request was due, `round_trip` from when it was sent.
COLUMNS = ("latency", "round_trip", "queued", "staged", "infer", "copied")


def ask(client: ShmClient, observation: Any, begin_ns: int, seconds: float, rate_hz: float | None) -> dict[str, Any]:
    """Send requests until the time is over: one after the other, or at `rate_hz` however long the replies take.

    A request that was late because the one before took too long is sent at once, and its latency counts from when it
    was due: otherwise a service that hangs for a second would show one slow request.
    """
    end_ns = begin_ns + int(seconds * 1e9)
    period_ns = int(1e9 / rate_hz) if rate_hz else 0
    rows: list[tuple[float, ...]] = []
    errors: dict[str, int] = {}
    due_ns = begin_ns
    began_cpu_s = time.process_time()
    while (now_ns := time.monotonic_ns()) < end_ns:
        if now_ns < due_ns:
            if due_ns >= end_ns:
                break
            time.sleep((due_ns - now_ns) / 1e9)
        elif not period_ns:
            due_ns = now_ns
        try:
            reply = client.request(observation)
        except ShmServeError as error:
            name = type(error).__name__
            errors[name] = errors.get(name, 0) + 1
        else:
            timing = reply.timing
            latency_us = (time.monotonic_ns() - due_ns) / 1e3
            rows.append(
                (
                    latency_us,
                    timing.round_trip_us,
                    timing.queued_us,
                    timing.staged_us,
                    timing.infer_us,
                    timing.copied_us,
                )
            )
        due_ns += period_ns
    took_s = (time.monotonic_ns() - begin_ns) / 1e9
    return {"rows": rows, "errors": errors, "took_s": took_s, "cpu_s": time.process_time() - began_cpu_s}


def main() -> int:
    order = json.loads(sys.stdin.readline())
    try:
        with ShmClient(order["name"], runtime_dir=order["runtime_dir"], timeout=order["timeout_s"]) as client:
            observation, _ = ObservationSource.from_json(order["observation"]).make(client.describe())
            for _ in range(order["warmup"]):
                client.infer(observation)
            print("ready", flush=True)
            begin_ns = int(sys.stdin.readline())
            time.sleep(max(0.0, (begin_ns - time.monotonic_ns()) / 1e9))
            found = ask(client, observation, begin_ns, order["seconds"], order["rate_hz"])
    except (ShmServeError, OSError, ValueError) as error:
        own = isinstance(error, observation_errors())
        print(json.dumps({"error": str(error) if own else f"{type(error).__name__}: {error}"}), flush=True)
        return 1
    rows = np.array(found.pop("rows"), np.float64).reshape(-1, len(COLUMNS))
    print(json.dumps(found), flush=True)
    # Not into the stream: numpy asks for its position, and a pipe has none.
    measured = io.BytesIO()
    np.save(measured, rows, allow_pickle=False)
    sys.stdout.buffer.write(measured.getvalue())
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
