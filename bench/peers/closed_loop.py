"""Asks again as soon as it is answered, checks every answer, and keeps every round trip's time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.workloads import Workload

from .peer import Infer


@dataclass(frozen=True)
class Sample:
    """What one turn measured. Processor time is spent inside the requests alone, not on making or checking them."""

    latency_ns: npt.NDArray[np.int64]
    client_thread_ns: int  # The thread that asks: what a control loop loses.
    client_process_ns: int  # With the client library's own threads.
    server_ns: int = 0


class ClosedLoop:
    """One client's requests, counted from 1 so that no two of them are the same."""

    def __init__(self, infer: Infer, workload: Workload) -> None:
        self._infer = infer
        self._workload = workload
        self._count = 0

    def requests(self, at_least: int, seconds: float) -> Sample:
        """Goes on until both are reached."""
        infer, workload = self._infer, self._workload
        took: list[int] = []
        thread_ns = process_ns = 0
        end = time.perf_counter_ns() + int(seconds * 1e9)
        while len(took) < at_least or time.perf_counter_ns() < end:
            self._count += 1
            workload.stamp(self._count)
            process, thread = time.process_time_ns(), time.thread_time_ns()
            start = time.perf_counter_ns()
            reply = infer(workload.observation)
            took.append(time.perf_counter_ns() - start)
            thread_ns += time.thread_time_ns() - thread
            process_ns += time.process_time_ns() - process
            workload.verify(reply, self._count)
        return Sample(np.array(took, np.int64), thread_ns, process_ns)
