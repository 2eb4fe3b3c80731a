"""Client in a separate process, which sends requests on command."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from bench.varying_workloads import asked_of

from .asking import Asking, Sample, wait_until
from .peer import AnnouncingPeer, Peer, end_with_parent

PREPARE = 20  # Requests before any turn: imports, connections, pools, Triton's model load.
WARM_UP, WARM_UP_SHARE = 3, 0.1  # Requests, and share of a turn, at its start that do not count.
TIMEOUT_S = 60.0
BEGIN_TOGETHER_NS = 20_000_000  # Lead time with which all clients begin at the same time.


class ClientFailed(Exception):
    """Error for a client process that ended or hung; the text has the place, if it is known."""


class ObservationRefused(ClientFailed):
    """Error for a way that does not accept this observation: its first request raised TypeError or ValueError."""


@dataclass(frozen=True)
class _Failure:
    """Message of a client process that raised."""

    text: str
    refused: bool


@dataclass(frozen=True)
class Turn:
    """Command for a client: its duration, in a closed loop or, with a rate, in an open one, or at a constant rate."""

    seconds: float
    rate_hz: float | None = None
    seed: int = 0
    begin_ns: int = 0  # CLOCK_MONOTONIC; the past is now.
    paced: bool = False  # At a constant rate instead of random times.


class ClientProcess:
    """Client of one peer for one workload; `turn` measures."""

    def __init__(self, peer: Peer, workload_name: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._name = f"{peer.name}, {workload_name}"
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_run, args=(peer, workload_name, theirs))
        with _variables(peer.environment):
            self._process.start()
        theirs.close()
        self._turn_s = 0.0

    def ready(self) -> int:
        """Wait until it has connected and warmed up; return the nanoseconds of its first request."""
        first_ns: int = self._answer()
        return first_ns

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def turn(self, turn: Turn) -> tuple[Sample, int]:
        """Return a sample, and the number of all requests, including those that do not count."""
        self.begin(turn)
        return self.end()

    def begin(self, turn: Turn) -> None:
        self._turn_s = turn.seconds
        self._pipe.send(turn)

    def end(self) -> tuple[Sample, int]:
        """Return the measurements of the turn that was begun, as `turn` does."""
        answer: tuple[Sample, int] = self._answer()
        return answer

    def close(self) -> None:
        self._pipe.close()  # The client ends by itself and so frees its library's resources.
        self._process.join(TIMEOUT_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()

    def _answer(self) -> Any:
        timeout_s = 2 * self._turn_s + TIMEOUT_S
        try:
            if not self._pipe.poll(timeout_s):
                self._process.kill()
                raise ClientFailed(f"{self._name}: no answer after {timeout_s:.0f} s")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1.0)
            raise ClientFailed(
                f"{self._name}: the client ended with status {self._process.exitcode}; its output is above"
            ) from None
        if isinstance(answer, _Failure):
            raise (ObservationRefused if answer.refused else ClientFailed)(f"{self._name}: {answer.text}")
        return answer


def turn_together(
    clients: Sequence[ClientProcess], seconds: float, rate_hz: float | None = None
) -> tuple[list[Sample], int]:
    """Run a turn of all clients at the same time; a rate is that of all together. Return each client's `ClientProcess.turn`."""
    begin_ns = time.monotonic_ns() + BEGIN_TOGETHER_NS
    share = None if rate_hz is None else rate_hz / len(clients)
    for seed, client in enumerate(clients):
        client.begin(Turn(seconds, share, seed, begin_ns))
    ended = [client.end() for client in clients]
    return [sample for sample, _ in ended], sum(requests for _, requests in ended)


@contextlib.contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the processes that the block starts."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(peer: Peer, workload_name: str, pipe: Connection) -> None:
    end_with_parent()
    prepared = False
    try:
        asking = _asking(peer, workload_name)
        first = asking.closed(1, 0.0)
        asking.closed(PREPARE, 0.0)
        prepared = True
        pipe.send(int(first.latency_ns[0]))
        while (turn := _next_turn(pipe)) is not None:
            wait_until(turn.begin_ns)
            if turn.paced and turn.rate_hz is not None:
                sample = asking.paced(turn.seconds, turn.rate_hz)
                pipe.send((sample, len(sample.latency_ns)))
                continue
            warm_up = asking.closed(WARM_UP, turn.seconds * WARM_UP_SHARE)
            if turn.rate_hz is None:
                sample = asking.closed(1, turn.seconds)
            else:
                sample = asking.open(turn.seconds, turn.rate_hz, turn.seed)
            pipe.send((sample, len(warm_up.latency_ns) + len(sample.latency_ns)))
    except Exception as error:  # noqa: BLE001  an exception of its library ends this row, not the benchmark
        refused = not prepared and isinstance(error, TypeError | ValueError) and not isinstance(error, OSError)
        with contextlib.suppress(BrokenPipeError):
            pipe.send(_Failure(f"{type(error).__name__}: {error}", refused))


def _asking(peer: Peer, workload_name: str) -> Asking:
    if isinstance(peer, AnnouncingPeer):
        infer, announce = peer.connect_with_announcement()
        return Asking(infer, asked_of(workload_name), announce, peer.ahead_ns)
    return Asking(peer.connect(), asked_of(workload_name))


def _next_turn(pipe: Connection) -> Turn | None:
    """Return the next command, or None after the benchmark has finished with this client or has ended."""
    try:
        turn: Turn = pipe.recv()
    except (EOFError, ConnectionResetError):
        return None
    return turn
