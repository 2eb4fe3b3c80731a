"""Fairness among three saturating clients: `python -m bench.scale.fairness`."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np

from bench.peers.fairness import jain_index
from bench.service import POLICIES, Service

from .figure import Figure, main
from .load import Load

TITLE = "Three saturating clients"
CLIENTS, IN_FLIGHT, SERVICE_US = 3, 8, 500


def measure(seconds: float) -> list[Figure]:
    """Let each client keep eight requests of half a millisecond in flight: the engine can always choose among all clients."""
    observation = {"service_us": SERVICE_US, "number": 0, "image": np.zeros((96, 96, 3), np.uint8)}
    with ExitStack() as cleanup:
        service = cleanup.enter_context(Service(POLICIES / "timed.py"))
        loads = [Load(service, observation, in_flight=IN_FLIGHT) for _ in range(CLIENTS)]
        for load in loads:
            cleanup.callback(load.close)
        for load in loads:
            load.ready()
        begin_ns = time.monotonic_ns() + 50_000_000
        for load in loads:
            load.begin(begin_ns, seconds)
        served = [len(load.end()) for load in loads]
    even = sum(served) / CLIENTS
    return [
        Figure("jain", "Jain's index of three saturating clients", jain_index(served), "x", 1.0, "all the same"),
        Figure(
            "least_share",
            "requests of the client with the fewest, to an even share",
            min(served) / even,
            "x",
            1.0,
            "all the same",
        ),
    ]


if __name__ == "__main__":
    main(TITLE, measure)
