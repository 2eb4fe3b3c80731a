"""CPU use of an idle daemon and an idle client: `python -m bench.scale.idle_cpu`."""

from __future__ import annotations

import time
from contextlib import ExitStack

from bench.peers.client_process import ClientProcess, Turn
from bench.peers.cpu_time import of_trees
from bench.peers.in_process import InProcess
from bench.peers.shmserve_peer import Shmserve

from .figure import Figure, main

TITLE = "Idle daemon and client"
#: Longer than the time for which an engine treats a client as active (`_COLD_AFTER_NS` in its loop.py).
SETTLE_S = 2.0


def measure(seconds: float) -> list[Figure]:
    """Measure a daemon and its client after a busy moment, beside a Python process that only sleeps."""
    peer = Shmserve()
    with ExitStack() as cleanup:
        cleanup.callback(peer.stop)
        peer.start()
        client, asleep = ClientProcess(peer, "vga"), ClientProcess(InProcess(), "vga")
        for process in (client, asleep):
            cleanup.callback(process.close)
            process.ready()
            process.turn(Turn(0.2))
        time.sleep(SETTLE_S)
        watched = {"daemon": peer.server_pids(), "client": [client.pid], "asleep": [asleep.pid]}
        before = {name: of_trees(pids) for name, pids in watched.items()}
        began = time.monotonic()
        time.sleep(max(seconds, 2.0))
        wall_ns = (time.monotonic() - began) * 1e9
        share = {name: 100 * (of_trees(pids) - before[name]) / wall_ns for name, pids in watched.items()}
    floor = share["asleep"]
    return [
        Figure("both", "daemon and client, of one processor", share["daemon"] + share["client"], "%", floor, "asleep"),
        Figure("daemon", "supervisor and engine, of one processor", share["daemon"], "%", floor, "asleep"),
        Figure("client", "client, of one processor", share["client"], "%", floor, "asleep"),
    ]


if __name__ == "__main__":
    main(TITLE, measure)
