"""Cost of an observation whose time and counter change: `python -m bench.scale.changing_timestamp`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.peers.policy import CHECK_MASK, checksum
from bench.peers.shmserve_peer import POLICY
from bench.service import Service
from bench.workloads import WrongReply, workload

from .figure import Figure, main

TITLE = "A changing timestamp"
ROUNDS = 8
Change = Callable[[dict[str, Any], int], None]


def _constant(observation: dict[str, Any], count: int) -> None:
    """Return the same observation each time."""


def _numbers(observation: dict[str, Any], count: int) -> None:
    observation["timestamp"] = time.time()
    observation["frame"] = count


def _text(observation: dict[str, Any], count: int) -> None:
    observation["instruction"] = f"pick up cup {count}"


WAYS: dict[str, Change] = {"constant": _constant, "numbers": _numbers, "text": _text}


def measure(seconds: float) -> list[Figure]:
    """Measure three clients in turns: nothing changes; a time and a counter change; a sentence changes."""
    medians: dict[str, list[float]] = {name: [] for name in WAYS}
    with Service(POLICY, model={"arrays": "numpy"}) as service:
        clients = {name: service.client() for name in WAYS}
        observations = {
            name: {**workload("tiny").observation, "timestamp": time.time(), "frame": 0, "done": False} for name in WAYS
        }
        for name, client in clients.items():
            _turn(client, observations[name], WAYS[name], 0.05)
        for _ in range(ROUNDS):
            for name, client in clients.items():
                medians[name].append(_turn(client, observations[name], WAYS[name], seconds / ROUNDS))
        for client in clients.values():
            client.close()
    constant = float(np.median(medians["constant"]))

    def ratio(name: str, what: str) -> Figure:
        ratios = [changing / same for changing, same in zip(medians[name], medians["constant"], strict=True)]
        return Figure(name, what, float(np.median(ratios)), "x", 1.0, "nothing changes")

    return [
        Figure("constant_us", "round trip, tiny, p50, nothing changes", constant, "us"),
        ratio("numbers", "a timestamp and a counter change, to nothing changes"),
        ratio("text", "the instruction's text changes each time, to nothing changes"),
    ]


def _turn(client: Any, observation: dict[str, Any], change: Change, seconds: float) -> float:
    """Return the median round trip, us."""
    took: list[int] = []
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end or len(took) < 3:
        count += 1
        change(observation, count)
        start = time.perf_counter_ns()
        reply = client.infer(observation)
        took.append(time.perf_counter_ns() - start)
        if reply["check"] != checksum(observation) & CHECK_MASK:
            raise WrongReply(f"request {count} got the sum {reply['check']}")
    return float(np.median(took)) / 1e3


if __name__ == "__main__":
    main(TITLE, measure)
