"""Comparison of the ways, one client at a time in a closed loop.

The ways take turns in rounds (A B C A B C), so that a slow moment of the machine affects all of them; each
workload gets new servers and clients, because malloc remembers the largest message and a later, smaller one then
runs faster than it would alone. Every reply is checked. Slow results are not failures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from bench.floors.floor import Floor
from bench.states import QUIET, Load
from bench.workloads import workload

from .client_process import ClientFailed, ClientProcess, Turn
from .cpu_time import of_trees
from .peer import Peer
from .rows import Row


class Contestant:
    """Started peer with its client and its row."""

    def __init__(self, peer: Peer, workload_name: str, cleanup: ExitStack) -> None:
        self.row = Row(peer.name)
        self._peer = peer
        self._idle_since: tuple[float, int] | None = None
        self._idle_s = self._idle_cpu_s = 0.0
        try:
            cleanup.callback(peer.stop)
            peer.expect(workload(workload_name))
            peer.start()
            self._client = ClientProcess(peer, workload_name)
            cleanup.callback(self._client.close)
            self.row.first_ns = self._client.ready()
        except (ClientFailed, OSError) as error:
            self.row.failed = str(error)

    def turn(self, seconds: float) -> None:
        if self.row.failed is not None:
            return
        start, before = time.monotonic(), of_trees(self._peer.server_pids())
        if self._idle_since is not None:
            self._idle_s += start - self._idle_since[0]
            self._idle_cpu_s += (before - self._idle_since[1]) / 1e9
        try:
            sample, requests = self._client.turn(Turn(seconds))
        except ClientFailed as error:
            self.row.failed = str(error)
            return
        after = of_trees(self._peer.server_pids())
        self._idle_since = time.monotonic(), after
        server_ns = (after - before) * len(sample.latency_ns) // requests
        self.row.samples.append(replace(sample, server_ns=server_ns))
        if self._idle_s:
            self.row.idle_share = self._idle_cpu_s / self._idle_s


def measure(
    peers: Sequence[Peer], beside: Sequence[Floor], name: str, seconds: float, rounds: int, load: Load | None = None
) -> list[Row]:
    """Measure all ways with one workload, in the given order; a load begins after all have started."""
    asked = workload(name)
    floor_rows = [Row(floor.name) for floor in beside]
    with ExitStack() as cleanup:
        contestants = [Contestant(peer, name, cleanup) for peer in peers]
        with load or Load(QUIET):
            for _ in range(rounds):
                for contestant in contestants:
                    contestant.turn(seconds / rounds)
                for row, floor in zip(floor_rows, beside, strict=True):
                    row.samples.append(floor.turn(asked, seconds / rounds))
    return [contestant.row for contestant in contestants] + floor_rows
