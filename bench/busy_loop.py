"""Busy program of a bounded length, which keeps a processor from the programs beside it.

    python bench/busy_loop.py BUSY_MS EVERY_MS SECONDS [PHASE_MS] [PARENT]

From a common start, offset by PHASE_MS, it uses BUSY_MS of processor time in every EVERY_MS and sleeps the rest; with
both equal it never sleeps. What it could not use before the end of a period is dropped, so a busy machine is not
followed by a busier one. It is pinned to no processor. Every end is bounded: SECONDS, a signal, or the end of PARENT,
the process that started it. It prints "busy" when it begins, and imports nothing that it does not need.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
MS = 1_000_000
UNCLOCKED = 500  # Some 10 us.


def run(busy_ns: int, every_ns: int, begin_ns: int, end_ns: int) -> None:
    """Be busy in every period from `begin_ns` to `end_ns`, both CLOCK_MONOTONIC."""
    clock, own = time.monotonic_ns, time.thread_time_ns
    period = begin_ns
    while period < end_ns:
        if (early := period - clock()) > 0:
            time.sleep(early / 1e9)
        period += every_ns
        until, last = own() + busy_ns, min(period, end_ns)
        while clock() < last and (busy_ns == every_ns or own() < until):
            for _ in range(UNCLOCKED):  # The clock of processor time is a system call.
                pass


def main(arguments: list[str]) -> None:
    busy_ms, every_ms, seconds = (float(argument) for argument in arguments[:3])
    phase_ms = float(arguments[3]) if len(arguments) > 3 else 0.0
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if len(arguments) > 4 and os.getppid() != int(arguments[4]):
        return  # The parent ended before the call above.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A Ctrl-C on the terminal is for the parent.
    print("busy", flush=True)
    begin = time.monotonic_ns()
    run(int(busy_ms * MS), int(every_ms * MS), begin + int(phase_ms * MS), begin + int(seconds * 1e9))


if __name__ == "__main__":
    main(sys.argv[1:])
