"""Closed and open loops of requests, with a check of every reply and the time of every round trip."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.workloads import Asked

from .peer import Infer

#: A sleep ends some 100 us late on a virtual machine: the rest of a wait polls the clock.
SPIN_NS = 300_000
#: Beats at the start of a turn at a constant rate that do not count: what learns the rate has learned it by then.
LEAD_IN_BEATS = 8


@dataclass(frozen=True)
class Sample:
    """Measurements of one turn. CPU time is that of the requests only, without making and checking them."""

    latency_ns: npt.NDArray[np.int64]
    client_thread_ns: int  # The calling thread: the cost for a control loop.
    client_process_ns: int  # With the client library's own threads.
    server_ns: int = 0
    elapsed_ns: int = 0  # The whole turn, with making and checking.
    unsent: int = 0  # Requests of an open loop that were due while an earlier one was still in flight at its end.
    missed: int = 0  # Beats of a constant rate that passed before the reply to an earlier request.


class Asking:
    """Requests of one client, counted from 1 so that no two are equal."""

    def __init__(
        self, infer: Infer, workload: Asked, announce: Callable[[], object] | None = None, ahead_ns: int = 0
    ) -> None:
        """Create it; `announce` is called `ahead_ns`, or half a period, before each request of a constant rate."""
        self._infer = infer
        self._announce, self._ahead_ns = announce, ahead_ns
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

    def paced(self, seconds: float, rate_hz: float) -> Sample:
        """Send one request at each beat of an absolute clock, as a control loop does: it sleeps in between, and never spins.

        A latency counts from the call, because the sleep before it ends late by itself. A beat that passed before the
        reply to an earlier request is missed, and has no request.
        """
        period_ns = int(1e9 / rate_hz)
        beats = max(1, round(seconds * rate_hz))
        took: list[int] = []
        missed, beat = 0, -LEAD_IN_BEATS
        start = time.monotonic_ns() + (1 + LEAD_IN_BEATS) * period_ns
        began = process_ns = 0
        infer, asked = self._infer, self._workload
        ahead_ns = min(self._ahead_ns, period_ns // 2)
        while beat < beats:
            if not began and beat >= 0:
                began, process_ns = time.monotonic_ns(), time.process_time_ns()
            due = start + beat * period_ns
            if self._announce is not None:
                sleep_until(due - ahead_ns)
                self._announce()
            sleep_until(due)
            self._count += 1
            asked.stamp(self._count)
            asked_at = time.monotonic_ns()
            reply = infer(asked.observation)
            answered_at = time.monotonic_ns()
            asked.verify(reply, self._count)
            passed = max(0, (answered_at - due) // period_ns)
            if beat >= 0:
                took.append(answered_at - asked_at)
            following = beat + 1 + passed
            missed += max(0, min(following, beats) - max(beat + 1, 0))  # a lead-in request may outlast measured beats
            beat = following
        process_ns = time.process_time_ns() - process_ns
        elapsed = time.monotonic_ns() - began
        return Sample(np.array(took, np.int64), 0, process_ns, elapsed_ns=elapsed, missed=missed)

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


def sleep_until(due_ns: int) -> None:
    """Sleep until `due_ns`, if that is in the future; the kernel ends it late by some 50 us."""
    if (ahead := due_ns - time.monotonic_ns()) > 0:
        time.sleep(ahead / 1e9)


def wait_until(due_ns: int, clock: Callable[[], int] = time.monotonic_ns) -> int:
    """Wait until `due_ns`, if that is in the future, and return the current time."""
    while (now := clock()) < due_ns:
        if due_ns - now > SPIN_NS:
            time.sleep((due_ns - now - SPIN_NS) / 1e9)
    return now
