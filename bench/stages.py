"""Stages of a request by the timing in the replies (`Reply.timing`), staged and in place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from bench.peers.shmserve_peer import POLICY
from bench.service import Service
from bench.workloads import workload

#: In order of time; "client" is the time that the engine does not see: encode, notice, decode.
STAGES = ("queued", "staged", "infer", "copied", "client")
ROUNDS = 5


def measure(workloads: Sequence[str], seconds: float) -> dict[str, Any]:
    """Measure for each workload and way the median of each stage and of the round trip, us."""
    found: dict[str, Any] = {}
    with ExitStack() as cleanup:
        services = {
            name: cleanup.enter_context(Service(POLICY, model={"arrays": "numpy", "read_in_place": in_place}))
            for name, in_place in (("staged", False), ("in place", True))
        }
        for name in workloads:
            clients = {way: cleanup.enter_context(service.client()) for way, service in services.items()}
            samples: dict[str, list[tuple[float, ...]]] = {way: [] for way in clients}
            for _ in range(ROUNDS):
                for way, client in clients.items():
                    samples[way] += _turn(client, name, way == "in place", seconds / ROUNDS)
            for client in clients.values():
                client.close()
            found[name] = {way: _medians(rows) for way, rows in samples.items()}
    return found


def _turn(client: Any, name: str, in_place: bool, seconds: float) -> list[tuple[float, ...]]:
    asked = workload(name)
    rows: list[tuple[float, ...]] = []
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end or count < 20:
        count += 1
        asked.stamp(count)
        reply = client.request(asked.observation)
        asked.verify(reply.action, count)
        timing = reply.timing
        assert reply.in_place == in_place, "the daemon did not do as its model.toml says"
        engine = (timing.queued_us, timing.staged_us, timing.infer_us, timing.copied_us)
        rows.append((*engine, timing.round_trip_us - sum(engine), timing.round_trip_us))
    return rows[max(3, count // 10) :]


def _medians(rows: list[tuple[float, ...]]) -> dict[str, float]:
    return dict(zip((*STAGES, "round_trip"), np.median(np.array(rows), axis=0).tolist(), strict=True))
