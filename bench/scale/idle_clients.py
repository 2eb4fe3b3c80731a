"""Cost of a request beside 64 idle clients: `python -m bench.scale.idle_clients`."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np

from bench.peers.client_process import ClientProcess, Turn
from bench.peers.shmserve_peer import POLICY, Shmserve
from bench.service import Service, clients

from .figure import Figure, main

TITLE = "64 idle clients"
IDLE = 64
ROUNDS = 5
#: Time after which the engine treats a client as idle.
SILENT_S = 1.2


class _Crowded(Shmserve):
    """Peer like shmserve, with a higher limit of clients than the default."""

    def start(self) -> None:
        self._service = Service(POLICY, model={"arrays": "numpy"}, settings={"max_clients": IDLE + 16})
        self._service.start()
        self.address = str(self._service.runtime_dir)

    @property
    def service(self) -> Service:
        assert self._service is not None
        return self._service


def measure(seconds: float) -> list[Figure]:
    """Measure one client alone, then with 64 idle ones attached, in turns."""
    peer = _Crowded()
    alone, crowded = [], []
    with ExitStack() as cleanup:
        cleanup.callback(peer.stop)
        peer.start()
        asking = ClientProcess(peer, "tiny")
        cleanup.callback(asking.close)
        asking.ready()
        for _ in range(ROUNDS):
            alone.append(asking.turn(Turn(seconds / ROUNDS))[0])
            with clients(peer.service, IDLE) as idle:
                for client in idle:
                    client.infer({"image": np.zeros(8, np.uint8)})
                time.sleep(SILENT_S)
                crowded.append(asking.turn(Turn(seconds / ROUNDS))[0])
    medians = [[float(np.median(sample.latency_ns)) / 1e3 for sample in way] for way in (alone, crowded)]
    ratios = [with_idle / without for without, with_idle in zip(*medians, strict=True)]
    # The same against itself: the difference between two equal turns on this machine.
    noise = [max(a, b) / min(a, b) for a, b in zip(medians[0], medians[0][1:], strict=False)]
    return [
        Figure(
            "p50_us",
            f"round trip, tiny, p50, beside {IDLE} idle clients",
            float(np.median(medians[1])),
            "us",
            float(np.median(medians[0])),
            "without them",
        ),
        Figure(
            "ratio",
            f"round trip beside {IDLE} idle clients, to the round trip without",
            float(np.median(ratios)),
            "x",
            float(np.median(noise)),
            "two turns without",
        ),
    ]


if __name__ == "__main__":
    main(TITLE, measure)
