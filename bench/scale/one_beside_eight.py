"""Wait of a client with one request beside one with eight: `python -m bench.scale.one_beside_eight`."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np

from bench.service import POLICIES, Service

from .figure import Figure, main
from .load import Answered, Load

TITLE = "A client with one request in flight beside one with eight"
SERVICE_US = 1000
ROUNDS = 3


def measure(seconds: float) -> list[Figure]:
    """Measure the single client alone, then beside the other, in turns; its wait ends when the engine takes the request."""
    observation = {"service_us": SERVICE_US, "number": 0, "image": np.zeros((96, 96, 3), np.uint8)}
    alone, beside = [], []
    with ExitStack() as cleanup:
        service = cleanup.enter_context(Service(POLICIES / "timed.py"))
        single = Load(service, observation)
        cleanup.callback(single.close)
        eight = Load(service, observation, in_flight=8)
        cleanup.callback(eight.close)
        for load in (single, eight):
            load.ready()
        for _ in range(ROUNDS):
            alone.append(_waits(_turn([single], seconds / ROUNDS)[0]))
            beside.append(_waits(_turn([single, eight], seconds / ROUNDS)[0]))
    waits, undisturbed = np.concatenate(beside), np.concatenate(alone)
    return [
        Figure(
            f"p{percentile}",
            f"wait of the client with one request in flight, in service times, p{percentile}",
            float(np.percentile(waits, percentile)),
            "x",
            float(np.percentile(undisturbed, percentile)),
            "alone",
        )
        for percentile in (50, 99)
    ]


def _turn(loads: list[Load], seconds: float) -> list[Answered]:
    begin_ns = time.monotonic_ns() + 20_000_000
    for load in loads:
        load.begin(begin_ns, seconds)
    return [load.end() for load in loads]


def _waits(answered: Answered) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the waits in units of each request's service time, without the first and the last, which ran alone."""
    return (answered.queued_us / np.median(answered.infer_us))[2:-2]


if __name__ == "__main__":
    main(TITLE, measure)
