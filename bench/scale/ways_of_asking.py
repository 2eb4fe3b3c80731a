"""Cost of each way to ask, on the fast path and off it: `python -m bench.scale.ways_of_asking`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.peers.shmserve_peer import POLICY
from bench.service import Service
from bench.workloads import workload
from shmserve.client import ShmClient

from .figure import Figure, main

TITLE = "Ways of asking"
ROUNDS = 8

#: Way -> its description.
WAYS = {
    "plain": "infer",
    "max_age": "with max_age",
    "submit": "submit, then result",
    "reset": "reset",
    "length": "a text of another length each time",
    "new": "a structure that is new each time",
    "infer_loaned": "infer_loaned",
    "loan": "client.loan, filled in and sent",
    "pickled": "an object that has to be pickled",
}


def _calls(client: ShmClient, observation: dict[str, Any]) -> dict[str, Callable[[], object]]:
    numbers = itertools.count()
    pickled = {**observation, "object": range(3)}

    def loaned() -> None:
        with client.infer_loaned(observation):
            pass

    def loan() -> None:
        with client.loan(observation) as filled:
            filled.send().result()

    return {
        "plain": lambda: client.infer(observation),
        "max_age": lambda: client.infer(observation, max_age=60.0),
        "submit": lambda: client.submit(observation).result(),
        "reset": client.reset,
        "length": lambda: client.infer({**observation, "text": "x" * (next(numbers) % 200)}),
        "new": lambda: client.infer({**observation, f"key {next(numbers)}": 1}),
        "infer_loaned": loaned,
        "loan": loan,
        "pickled": lambda: client.infer(pickled),
    }


def measure(seconds: float) -> list[Figure]:
    """Measure one client's calls in turns, with a tiny observation."""
    medians: dict[str, list[float]] = {name: [] for name in WAYS}
    with Service(POLICY, model={"arrays": "numpy"}) as service:
        client = service.client()
        calls = _calls(client, workload("tiny").observation)
        for call in calls.values():
            _turn(call, 0.05)
        for _ in range(ROUNDS):
            for name, call in calls.items():
                medians[name].append(_turn(call, seconds / ROUNDS))
        client.close()
    plain = float(np.median(medians["plain"]))
    figures = [Figure("plain_us", WAYS["plain"], plain, "us")]
    for name in list(WAYS)[1:]:
        ratios = [way / same for way, same in zip(medians[name], medians["plain"], strict=True)]
        figures.append(Figure(f"{name}_ratio", WAYS[name], float(np.median(ratios)), "x", 1.0, "plain"))
    return figures


def _turn(call: Callable[[], object], seconds: float) -> float:
    """Call for this many seconds; return the median duration in microseconds."""
    durations = []
    end_ns = time.perf_counter_ns() + int(seconds * 1e9)
    began_ns = 0
    while began_ns < end_ns:
        began_ns = time.perf_counter_ns()
        call()
        durations.append(time.perf_counter_ns() - began_ns)
    return float(np.median(durations)) / 1e3


if __name__ == "__main__":
    main(TITLE, measure)
