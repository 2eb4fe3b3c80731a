"""A client in a process of its own, which asks when it is told to."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from bench.workloads import WrongReply, workload

from .closed_loop import ClosedLoop, Sample
from .peer import Peer, end_with_parent

PREPARE = 20  # Requests before any turn: imports, connections, pools, Triton's model load.
WARM_UP, WARM_UP_SHARE = 3, 0.1  # Requests, and share of a turn, at its start that do not count.
TIMEOUT_S = 60.0


class ClientFailed(Exception):
    """A client process ended or hung; the text says where, as far as it could tell."""


class ClientProcess:
    """Connects to one peer for one workload; `turn` measures."""

    def __init__(self, peer: Peer, workload_name: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._name = f"{peer.name}, {workload_name}"
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_run, args=(peer, workload_name, theirs))
        self._process.start()
        theirs.close()
        self.first_ns: int = self._answer(0.0)

    def turn(self, seconds: float) -> tuple[Sample, int]:
        """A sample, and the number of requests in all with those that do not count."""
        self._pipe.send(seconds)
        answer: tuple[Sample, int] = self._answer(seconds)
        return answer

    def close(self) -> None:
        self._pipe.close()  # The client ends by itself and so frees what its library holds.
        self._process.join(TIMEOUT_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()

    def _answer(self, seconds: float) -> Any:
        try:
            if not self._pipe.poll(2 * seconds + TIMEOUT_S):
                self._process.kill()
                raise ClientFailed(f"{self._name}: no answer after {2 * seconds + TIMEOUT_S:.0f} s")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1.0)
            raise ClientFailed(
                f"{self._name}: the client ended with status {self._process.exitcode}; its output is above"
            ) from None
        if isinstance(answer, str):
            raise ClientFailed(f"{self._name}: {answer}")
        return answer


def _run(peer: Peer, workload_name: str, pipe: Connection) -> None:
    end_with_parent()
    try:
        loop = ClosedLoop(peer.connect(), workload(workload_name))
        first = loop.requests(1, 0.0)
        loop.requests(PREPARE, 0.0)
        pipe.send(int(first.latency_ns[0]))
        while True:
            seconds: float = pipe.recv()
            warm_up = loop.requests(WARM_UP, seconds * WARM_UP_SHARE)
            sample = loop.requests(1, seconds)
            pipe.send((sample, len(warm_up.latency_ns) + len(sample.latency_ns)))
    except EOFError:  # The benchmark is done with this client.
        return
    except (WrongReply, RuntimeError, OSError) as error:
        pipe.send(f"{type(error).__name__}: {error}")
