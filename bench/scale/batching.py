"""Throughput of batches of eight, against the same model called with ready batches: `python -m bench.scale.batching`."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench.peers.peer import end_with_parent
from bench.policies.small_network import IMAGE
from bench.service import POLICIES, Service

from .figure import Figure, main
from .load import Load

TITLE = "Batches of eight"
BATCH = CLIENTS = 8
ROUNDS = 4
POLICY = POLICIES / "small_network.py"
TIMEOUT_S = 120.0


class _InProcess:
    """Policy in a separate process, called with ready batches, or with one observation at a time."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_call, args=(theirs,))
        self._process.start()
        theirs.close()

    def per_second(self, batch: int, seconds: float) -> float:
        self._pipe.send((batch, seconds))
        if not self._pipe.poll(TIMEOUT_S):
            raise TimeoutError(f"the model in its own process said nothing for {TIMEOUT_S:.0f} s")
        rate: float = self._pipe.recv()
        return rate

    def close(self) -> None:
        self._pipe.close()
        self._process.join(TIMEOUT_S)


def _call(pipe: Connection) -> None:
    import torch

    from bench.policies.small_network import Policy

    end_with_parent()
    policy = Policy()
    try:
        with torch.inference_mode():
            while True:
                size, seconds = pipe.recv()
                batch = [{"image": torch.from_numpy(image()), "number": row} for row in range(size)]
                for _ in range(3):
                    policy.infer_batch(batch)
                began, calls = time.monotonic(), 0
                while time.monotonic() < began + seconds:
                    policy.infer_batch(batch)
                    calls += 1
                pipe.send(calls * size / (time.monotonic() - began))
    except EOFError:
        return


def image() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, IMAGE, np.uint8)


def measure(seconds: float) -> list[Figure]:
    """Measure ready batches in process, eight clients with one request each, and with two each, in turns."""
    observation = {"image": image(), "number": 0}
    ready, single = [], []
    reached: dict[int, list[float]] = {1: [], 2: []}
    sizes: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as cleanup:
        in_process = _InProcess()
        cleanup.callback(in_process.close)
        service = cleanup.enter_context(Service(POLICY, model={"max_batch": BATCH}))
        loads: dict[int, list[Load]] = {}
        for in_flight in (1, 2):
            loads[in_flight] = [Load(service, observation, in_flight=in_flight) for _ in range(CLIENTS)]
            for load in loads[in_flight]:
                cleanup.callback(load.close)
        for load in loads[1] + loads[2]:
            load.ready()
        for _ in range(ROUNDS):
            turn_s = seconds / ROUNDS
            ready.append(in_process.per_second(BATCH, turn_s))
            single.append(in_process.per_second(1, turn_s))
            for in_flight, rates in reached.items():
                before = _counts(service)
                rates.append(_per_second(loads[in_flight], turn_s))
                served, batches = (now - then for now, then in zip(_counts(service), before, strict=True))
                if batches:
                    sizes[in_flight].append(served / batches)
    best = float(np.median(ready))

    def figure(name: str, what: str, rates: list[float]) -> Figure:
        ratio = float(np.median([rate / full for rate, full in zip(rates, ready, strict=True)]))
        return Figure(name, what, ratio, "x", float(np.median(single)) / best, "the model called with one at a time")

    return [
        figure("two_each", "8 clients with two requests in flight each, to ready batches of 8 in process", reached[2]),
        figure("one_each", "8 clients with one request in flight each, to ready batches of 8 in process", reached[1]),
        Figure("in_process_per_s", "ready batches of 8 in process, observations per second", best, ""),
        *(
            Figure(f"mean_batch_{in_flight}", f"mean batch, {in_flight} in flight each", float(np.mean(found)), "")
            for in_flight, found in sizes.items()
            if found
        ),
    ]


def _per_second(loads: list[Load], seconds: float) -> float:
    begin_ns = time.monotonic_ns() + 20_000_000
    for load in loads:
        load.begin(begin_ns, seconds)
    return sum(len(load.end()) for load in loads) / seconds


def _counts(service: Service) -> tuple[int, int]:
    """Return the requests served and the calls of the model, from the status."""
    requests: dict[str, Any] = service.status()["requests"]
    return requests["served"], requests.get("batches", 0)


if __name__ == "__main__":
    main(TITLE, measure)
