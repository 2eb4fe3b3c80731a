"""Supervisor without free descriptors."""

from __future__ import annotations

import os
import resource
import time

import numpy as np

from chaos.service import Service, wait_served
from shmserve.client import ShmServeError

_VISITORS = 6
#: CPU time per second that the supervisor may use while connections that it cannot accept are waiting.
_BUSY_S = 0.5


def no_descriptors(service: Service, rounds: int) -> str:
    """Attach without free descriptors: new clients get a typed error, attached ones continue, the supervisor does not spin."""
    others = service.busy_robots(2)
    pid = service.daemon.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    heard = 0
    busiest_s = 0.0
    for spare in range(rounds):
        used = max(int(entry) for entry in os.listdir(f"/proc/{pid}/fd")) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + spare, limits[1]))
        try:
            for _ in range(_VISITORS):
                try:
                    with service.daemon.client(max_retries=0, timeout=1.5) as client:
                        client.infer({"x": np.arange(3), "robot": "visitor"})
                except ShmServeError:
                    heard += 1
            before_s = _processor_s(pid)
            began_s = time.monotonic()
            wait_served(others, 20)
            time.sleep(0.5)
            busiest_s = max(busiest_s, (_processor_s(pid) - before_s) / (time.monotonic() - began_s))
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        with service.daemon.client(timeout=30) as client:
            assert client.infer({"x": np.arange(3), "robot": "visitor"})["k"] == 3
    assert heard, "no visitor was refused"
    assert busiest_s < _BUSY_S, f"the supervisor spins: {busiest_s:.2f} s of processor time a second"
    return (
        f"{rounds} times without descriptors: {heard} of {rounds * _VISITORS} visitors got a typed error, served again "
        f"afterwards; the supervisor used {busiest_s:.2f} s of processor time a second meanwhile"
    )


def _processor_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
