"""Effect of rotating slots: `python -m bench.scale.slots_in_turn`."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.peers.asking import Asking
from bench.peers.shmserve_peer import POLICY
from bench.service import Service
from bench.workloads import workload

from .figure import Figure, main

TITLE = "Slots in turn"
WORKLOAD = "vga"
ROUNDS = 8
#: A client with one slot writes each observation where the engine has just read the last one.
SLOTS = (1, 4)


def measure(seconds: float) -> list[Figure]:
    """Measure a client with one slot and one with four, one request in flight, in turns; then the same read in place."""
    return [
        _one_to_four("staged", in_place=False, seconds=seconds),
        _one_to_four("in_place", in_place=True, seconds=seconds),
    ]


def _one_to_four(name: str, in_place: bool, seconds: float) -> Figure:
    medians: dict[int, list[float]] = {slots: [] for slots in SLOTS}
    with Service(POLICY, model={"arrays": "numpy", "read_in_place": in_place}) as service:
        clients = {slots: service.client(slots=slots) for slots in SLOTS}
        for client in clients.values():
            _median_ns(client, 0.05)
        for _ in range(ROUNDS):
            for slots, client in clients.items():
                medians[slots].append(_median_ns(client, seconds / ROUNDS))
        for client in clients.values():
            client.close()
    ratios = [four / one for one, four in zip(*medians.values(), strict=True)]
    way = "read in place" if in_place else "staged"
    return Figure(
        name, f"round trip, {WORKLOAD}, {way}, four slots to one", float(np.median(ratios)), "x", 1.0, "one slot"
    )


def _median_ns(client: Any, seconds: float) -> float:
    sample = Asking(client.infer, workload(WORKLOAD)).closed(at_least=20, seconds=seconds)
    return float(np.median(sample.latency_ns))


if __name__ == "__main__":
    main(TITLE, measure)
