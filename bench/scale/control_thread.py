"""Thread time that a 50 Hz control loop loses: `python -m bench.scale.control_thread`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bench.peers.asking import SPIN_NS
from bench.service import POLICIES, Service
from bench.workloads import workload

from .figure import Figure, main

TITLE = "The control thread's time"
PERIOD_NS = 20_000_000
SERVICE_US = {"a fast policy (0.2 ms)": 200, "a slow policy (10 ms)": 10_000}


def measure(seconds: float) -> list[Figure]:
    """Measure the CPU time of the calling thread inside `infer`, for each request with a VGA observation at 50 Hz."""
    observation: dict[str, Any] = {**workload("vga").observation, "number": 0}
    figures = []
    with Service(POLICIES / "timed.py") as service:
        ways = {"adaptive": service.client(), "asleep": service.client(spin_us=0)}
        for what, service_us in SERVICE_US.items():
            observation["service_us"] = service_us
            spent: dict[str, list[int]] = {name: [] for name in ways}
            due = time.monotonic_ns()
            for count in range(int(seconds * 1e9 / PERIOD_NS) + 20):
                for name, client in ways.items():
                    due += PERIOD_NS
                    _sleep_until(due)
                    observation["number"] = count
                    before = time.thread_time_ns()
                    answer = client.infer(observation)
                    spent[name].append(time.thread_time_ns() - before)
                    if answer["number"] != count:
                        raise RuntimeError(f"request {count} got the answer to {answer['number']}")
            figures += [
                Figure(
                    f"{name}_{service_us}_us",
                    f"thread time of a request at 50 Hz, {what}, {'spin_us=0' if name == 'asleep' else 'the default'}",
                    float(np.median(spent[name][10:])) / 1e3,
                    "us",
                    _copy_us(observation["image"]),
                    "copying the image alone",
                )
                for name in ways
            ]
        for client in ways.values():
            client.close()
    return figures


def _sleep_until(due_ns: int) -> None:
    """Sleep as a control loop does, so that the caches are as cold as there."""
    if (ahead := due_ns - time.monotonic_ns()) > SPIN_NS:
        time.sleep(ahead / 1e9)


def _copy_us(image: Any) -> float:
    """Measure the thread time of one copy into mapped memory, at the same rate."""
    target = np.zeros_like(image)
    spent = []
    for _ in range(10):
        time.sleep(PERIOD_NS / 1e9)
        before = time.thread_time_ns()
        np.copyto(target, image)
        spent.append(time.thread_time_ns() - before)
    return float(np.median(spent)) / 1e3


if __name__ == "__main__":
    main(TITLE, measure)
