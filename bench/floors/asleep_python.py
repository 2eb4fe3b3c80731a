"""Floor in Python whose both sides sleep: two semaphores and shared memory, without a server.

The same exchange as `bare_python.py`, with two copies of the observation, but each side waits at a semaphore. It is a peer
because its client stays alive between its turns. The client's first request forks the other process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from multiprocessing.synchronize import Semaphore
from types import MappingProxyType
from typing import Any

import numpy as np

from bench.floors.bare_python import Shared
from bench.peers.peer import Infer, end_with_parent
from bench.peers.policy import Policy
from bench.workloads import Asked


class AsleepPython:
    """Floor with the interface of a peer."""

    name = "Python, 2 copies, sleep"
    environment: Mapping[str, str] = MappingProxyType({})

    def available(self) -> str | None:
        return None

    def expect(self, asked: Asked) -> None:
        """Do nothing: the first request has the layout."""

    def start(self) -> None:
        """Do nothing: the client starts the other process."""

    def connect(self) -> Infer:
        """Return `infer` for observations of one layout, whose arrays are those of the first call."""
        exchange: _Exchange | None = None

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            nonlocal exchange
            if exchange is None:
                exchange = _Exchange(observation)
            return exchange.infer()

        return infer

    def stop(self) -> None:
        """Do nothing: the other process ends with the client."""

    def server_pids(self) -> list[int]:
        return []


class _Exchange:
    """Client's side; the other process has the same memory by fork."""

    def __init__(self, observation: dict[str, Any]) -> None:
        self._shared = Shared(observation)
        fork = multiprocessing.get_context("fork")
        self._asked, self._answered = fork.Semaphore(0), fork.Semaphore(0)
        self._arrays = self._shared.arrays()
        arguments = (self._shared, observation, self._asked, self._answered)
        # A daemon: it is ended and waited for with the client, so its processor time is the benchmark's own.
        fork.Process(target=serve, args=arguments, daemon=True).start()

    def infer(self) -> dict[str, Any]:
        for array, place in self._arrays:
            np.copyto(place, array)
        self._asked.release()
        self._answered.acquire()
        return {"actions": self._shared.actions.copy(), "check": self._shared.check[0]}


def serve(shared: Shared, observation: dict[str, Any], asked: Semaphore, answered: Semaphore) -> None:
    """Serve the policy until the process is ended, each time from a copy of the observation."""
    end_with_parent()
    aligned = np.empty(shared.bytes + 64, np.uint8)
    own = aligned[-aligned.ctypes.data % 64 :][: shared.bytes]
    own[:] = 0
    tree = shared.tree(observation, own)
    policy = Policy()
    payload, check, actions = shared.payload, shared.check, shared.actions
    while True:
        asked.acquire()
        np.copyto(own, payload)
        reply = policy.infer(tree)
        np.copyto(actions, reply["actions"])
        check[0] = reply["check"]
        answered.release()
