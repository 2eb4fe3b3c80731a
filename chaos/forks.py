"""Clients that fork with requests in flight, and leave children behind when they are killed."""

from __future__ import annotations

import time

from chaos.service import Service, naming, wait_served
from chaos.tally import Word
from tests.support.daemon_process import wait_until

_DEATH_LIMIT_S = 10.0


def fork_clients(service: Service, kills: int) -> str:
    """Let each child use its parent's client: it is refused, and the channel ends with the parent although a child lives on."""
    others = service.busy_robots(2)
    baseline = service.objects()
    children = 0
    reclaimed_ms = []
    for _ in range(kills):
        parent = service.robot(window=3, forks=True)
        wait_until("two children were refused", lambda parent=parent: parent.tally[Word.CHILDREN] > 1, 60.0)
        time.sleep(service.random.uniform(0, 0.02))
        parent.kill(_DEATH_LIMIT_S)
        began_s = time.monotonic()
        with naming(parent.pid, service.daemon.pid):
            wait_until("the channel is reclaimed", lambda: service.objects() <= baseline)
        reclaimed_ms.append((time.monotonic() - began_s) * 1000)
        children += parent.tally[Word.CHILDREN]
        service.settle(parent, killed=True)
        wait_served(others, 3)
    return (
        f"{kills} clients killed that had forked {children} children: each was refused, none kept the channel "
        f"(reclaimed after {max(reclaimed_ms):.0f} ms at the most)"
    )
