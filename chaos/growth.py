"""Growth of a service's resources over many clients and many requests: none is allowed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chaos.service import Service
from tests.support.daemon_process import wait_until

#: Allocators keep some memory for later. Growth above this is a leak: it is a fraction of the smallest segment per client.
_ROOM_BYTES = 8 << 20


@dataclass(frozen=True)
class Held:
    """Resources of one process."""

    descriptors: int
    mappings: int
    resident_bytes: int

    @classmethod
    def by(cls, pid: int) -> Held:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        mappings = len(Path(f"/proc/{pid}/maps").read_text().splitlines())
        return cls(len(os.listdir(f"/proc/{pid}/fd")), mappings, resident)


def attach_and_detach(service: Service, cycles: int) -> str:
    """Attach n clients one after the other, each with a request, by name and by descriptor; half of them resize."""

    def visit(number: int) -> None:
        with service.daemon.client(timeout=30, check_contract=False) as client:
            x = np.arange(3 if number % 2 else 20_000)
            assert client.infer({"x": x, "robot": "visitor"})["y"][-1] == x[-1] * 3
        service.daemon.forget_clients()

    return f"{cycles:,} clients attached and left, {_unchanged(service, visit, cycles)}"


def many_requests(service: Service, requests: int) -> str:
    """Send n requests from one client."""
    with service.daemon.client(timeout=30, check_contract=False) as client:
        x = np.arange(40)

        def ask(number: int) -> None:
            assert client.infer({"x": x, "robot": "visitor"})["k"] == 3

        return f"{requests:,} requests, {_unchanged(service, ask, requests)}"


def _unchanged(service: Service, act: object, times: int) -> str:
    assert callable(act)
    daemon = service.daemon
    pids = {"supervisor": daemon.pid, "engine": daemon.engine_pid, "client": os.getpid()}
    # Memory that is allocated once and kept: caches, the histogram's pages, free lists.
    for number in range(max(50, times // 10)):
        act(number)
    objects = service.objects()
    before = {name: Held.by(pid) for name, pid in pids.items()}
    for number in range(times):
        act(number)
    wait_until("the clients' objects are gone", lambda: service.objects() <= objects)
    said = []
    for name, pid in pids.items():
        # The engine may not have handled the end of the last client yet.
        wait_until(
            f"the {name} holds no more descriptors and mappings than before",
            lambda name=name, pid=pid: (
                Held.by(pid).descriptors <= before[name].descriptors
                and Held.by(pid).mappings <= before[name].mappings + 2
            ),
        )
        grown = Held.by(pid).resident_bytes - before[name].resident_bytes
        assert grown < _ROOM_BYTES, f"the {name} grew by {grown} bytes"
        said.append(f"{name} {grown / 1024:+,.0f} KiB")
    return f"descriptors and mappings as before; resident memory: {', '.join(said)}"
