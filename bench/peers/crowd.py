"""Measurement of one way with several clients at once, and in an open loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from bench.workloads import workload

from .asking import Sample
from .client_process import ClientFailed, ClientProcess, turn_together
from .cpu_time import of_trees
from .fairness import jain_index
from .peer import Peer

#: Number of robots of the open loop; their rates add up to the given one.
OPEN_LOOP_CLIENTS = 4


def measure_crowd(
    peer: Peer, workload_name: str, counts: Sequence[int], seconds: float, rounds: int, rate_hz: float
) -> dict[str, Any]:
    """Measure one way: closed loops with each number of clients, and an open loop, in turns.

    All clients stay attached; those without a part in a turn are idle.
    """
    try:
        with ExitStack() as cleanup:
            cleanup.callback(peer.stop)
            peer.expect(workload(workload_name))
            peer.start()
            crowd: list[ClientProcess] = []
            for _ in range(max(*counts, OPEN_LOOP_CLIENTS)):
                crowd.append(ClientProcess(peer, workload_name))
                cleanup.callback(crowd[-1].close)
            for client in crowd:
                client.ready()
            closed: dict[int, list[list[Sample]]] = {count: [] for count in counts}
            open_loop: list[list[Sample]] = []
            server_ns, in_all = dict.fromkeys(counts, 0), dict.fromkeys(counts, 0)
            for _ in range(rounds):
                for count in counts:
                    before = of_trees(peer.server_pids())
                    samples, requests = turn_together(crowd[:count], seconds / rounds)
                    closed[count].append(samples)
                    server_ns[count] += of_trees(peer.server_pids()) - before
                    in_all[count] += requests
                open_loop.append(turn_together(crowd[:OPEN_LOOP_CLIENTS], seconds / rounds, rate_hz)[0])
    except (ClientFailed, OSError) as error:
        return {"name": peer.name, "failed": str(error)}
    return {
        "name": peer.name,
        "clients": {str(count): closed_figures(closed[count], server_ns[count] / in_all[count]) for count in counts},
        "open_loop": open_figures(open_loop),
    }


def closed_figures(rounds: list[list[Sample]], server_ns: float) -> dict[str, float]:
    """Summarise all rounds; throughput is that of clients that make and check each request in between.

    `server_ns` is the server's processor time for each request.
    """
    each = [np.concatenate([turn[client].latency_ns for turn in rounds]) / 1e3 for client in range(len(rounds[0]))]
    all_us = np.concatenate(each)
    rates = [
        sum(len(turn[client].latency_ns) for turn in rounds) / sum(turn[client].elapsed_ns for turn in rounds) * 1e9
        for client in range(len(each))
    ]
    return {
        "requests": len(all_us),
        "requests_per_s": sum(rates),
        **{f"p{percentile}_us": float(np.percentile(all_us, percentile)) for percentile in (50, 90, 99)},
        "worst_client_p99_us": max(float(np.percentile(us, 99)) for us in each),
        "jain": jain_index(rates),
        "client_thread_cpu_us": _spent(rounds, "client_thread_ns") / len(all_us) / 1e3,
        "server_cpu_us": server_ns / 1e3,
    }


def open_figures(rounds: list[list[Sample]]) -> dict[str, float]:
    """Summarise the latencies, counted from the time at which each request was due."""
    us = np.concatenate([sample.latency_ns for turn in rounds for sample in turn]) / 1e3
    return {
        "requests": len(us),
        "unsent": sum(sample.unsent for turn in rounds for sample in turn),
        **{f"p{percentile}_us": float(np.percentile(us, percentile)) for percentile in (50, 90, 99)},
        "max_us": float(us.max()),
    }


def _spent(rounds: list[list[Sample]], what: str) -> int:
    return sum(getattr(sample, what) for turn in rounds for sample in turn)
