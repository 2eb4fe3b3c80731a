"""Processes that stop for seconds, and a client that never reads replies."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from chaos.service import Service, wait_served
from shmserve.layout import number_of, sequence_of
from tests.support.raw_channel import RawChannel

_SILENT_S = 0.5


def stop_and_go(service: Service, stops: int, seconds: float) -> str:
    """Send SIGSTOP to a client, the engine and the supervisor in turn, SIGCONT after `seconds`."""
    stopped_one, *others = service.busy_robots(3)
    for number in range(stops):
        time.sleep(service.random.uniform(0, 0.05))
        if number % 3 == 0:
            stopped_one.send(signal.SIGSTOP)
            wait_served(others, 10)  # the others are served while it is stopped
            time.sleep(seconds)
            stopped_one.send(signal.SIGCONT)
        else:
            pid = service.daemon.engine_pid if number % 3 == 1 else service.daemon.pid
            os.kill(pid, signal.SIGSTOP)
            if pid == service.daemon.pid:
                wait_served([stopped_one, *others], 10)  # requests do not pass through the supervisor
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
        wait_served([stopped_one, *others], 3)
    return f"{stops} times SIGSTOP for {seconds:g} s to a client, an engine, a supervisor: all served again"


def never_read(service: Service, rounds: int) -> str:
    """Publish requests continuously without reading replies: only this client's requests suffer."""
    others = service.busy_robots(2)
    engine = service.daemon.engine_pid
    published = 0
    for _ in range(rounds):
        with RawChannel(service.daemon) as raw:
            until_s = time.monotonic() + _SILENT_S
            while time.monotonic() < until_s and not raw.attachment.is_peer_closed():
                sequence = sequence_of(number_of(raw.requests.published()) + 1, published % 4)
                raw.publish(raw.head({"x": np.arange(3), "robot": "silent"}, sequence))
                published += 1
                time.sleep(0.001)
            wait_served(others, 10)
    assert service.daemon.engine_pid == engine
    return f"{rounds} clients that never read published {published:,} requests: the others were served throughout"
