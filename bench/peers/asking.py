"""Closed and open loops of requests, with a check of every reply and the time of every round trip."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.workloads import Workload

from .peer import Infer

#: A sleep ends some 100 us late on a virtual machine: the rest of a wait polls the clock.
SPIN_NS = 300_000


@dataclass(frozen=True)
class Sample:
    """Measurements of one turn. CPU time is that of the requests only, without making and checking them."""

    latency_ns: npt.NDArray[np.int64]
    client_thread_ns: int  # The calling thread: the cost for a control loop.
    client_process_ns: int  # With the client library's own threads.
    server_ns: int = 0
    elapsed_ns: int = 0  # The whole turn, with making and checking.
    unsent: int = 0  # Requests of an open loop that were due while an earlier one was still in flight at its end.


class Asking:
    """Requests of one client, counted from 1 so that no two are equal."""

    def __init__(self, infer: Infer, workload: Workload) -> None:
        self._infer = infer
        self._workload = workload
        self._count = 0
        self._thread_ns = self._process_ns = 0

    def closed(self, at_least: int, seconds: float) -> Sample:
        """Send each request after the last reply, until both limits are reached."""
        took: list[int] = []
        began = self._begin()
        end = began + int(seconds * 1e9)
        while len(took) < at_least or time.monotonic_ns() < end:
            took.append(self._ask(None))
        return self._sample(took, began)

    def open(self, seconds: float, rate_hz: float, seed: int) -> Sample:
        """Send requests at the times of a Poisson process, whatever the time of the replies.

        A latency counts from the time chosen, so a reply that is late makes those behind it late, too. A request that
        could not be sent within `seconds` counts with the time that it had waited by then.
        """
        noise = np.random.default_rng(seed)
        took: list[int] = []
        began = self._begin()
        end = began + int(seconds * 1e9)
        due, unsent = began, 0
        while (due := due + int(noise.exponential(1e9 / rate_hz))) < end:
            if (now := wait_until(due)) < end:
                took.append(self._ask(due))
            else:
                took.append(now - due)
                unsent += 1
        return self._sample(took, began, unsent)

    def _begin(self) -> int:
        self._thread_ns = self._process_ns = 0
        return time.monotonic_ns()

    def _ask(self, due_ns: int | None) -> int:
        """Send one request; return the nanoseconds to its reply from `due_ns`, or else from the time it was sent."""
        self._count += 1
        self._workload.stamp(self._count)
        process, thread = time.process_time_ns(), time.thread_time_ns()
        start = time.monotonic_ns()
        reply = self._infer(self._workload.observation)
        stop = time.monotonic_ns()
        self._thread_ns += time.thread_time_ns() - thread
        self._process_ns += time.process_time_ns() - process
        self._workload.verify(reply, self._count)
        return stop - (start if due_ns is None else due_ns)

    def _sample(self, took: list[int], began_ns: int, unsent: int = 0) -> Sample:
        elapsed = time.monotonic_ns() - began_ns
        return Sample(np.array(took, np.int64), self._thread_ns, self._process_ns, elapsed_ns=elapsed, unsent=unsent)


def wait_until(due_ns: int, clock: Callable[[], int] = time.monotonic_ns) -> int:
    """Wait until `due_ns`, if that is in the future, and return the current time."""
    while (now := clock()) < due_ns:
        if due_ns - now > SPIN_NS:
            time.sleep((due_ns - now - SPIN_NS) / 1e9)
    return now
