"""Kernel entries of a request in the steady state: `python -m bench.scale.kernel_entries`.

`strace -c`, or without strace `perf trace -s`, counts the system calls of both processes. Page faults and context
switches are the kernel's counts. All are for many requests, so that the few calls at both ends do not matter.
"""

from __future__ import annotations

import multiprocessing
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.peers.leftovers import my_prefix
from bench.peers.peer import end_with_parent
from bench.peers.shmserve_peer import Shmserve, ShmserveBlocking
from bench.workloads import workload

from .figure import Figure, NotMeasured, main

TITLE = "Kernel entries of a request"
WORKLOAD = "vga"
#: Longer than any wait of a busy loop: with less, the first slow reply under a tracer, which makes every call slow,
#: would end the spinning for good.
SPIN_US = 100_000
ATTACH_S = 0.5
TIMEOUT_S = 60.0


class _Spinning(Shmserve):
    """Peer of which both sides find the other's word before they sleep."""

    spin_us = SPIN_US


def measure(seconds: float) -> list[Figure]:
    """Measure with spinning, and for comparison with sleeping."""
    tool = tracer()
    spinning = _requests(_Spinning(), seconds, tool)
    blocking = _requests(ShmserveBlocking(), seconds, tool)

    def figure(name: str, what: str) -> Figure:
        return Figure(name, f"{what} for each request", spinning[name], "", blocking[name], "both sides sleep")

    return [
        figure("client_calls", f"system calls of the client ({tool})"),
        figure("daemon_calls", f"system calls of supervisor and engine ({tool})"),
        figure("client_faults", "page faults of the client"),
        figure("engine_faults", "page faults of the engine"),
        figure("client_sleeps", "voluntary context switches of the client"),
        figure("engine_sleeps", "voluntary context switches of the engine"),
    ]


def tracer() -> str:
    """Return the program that counts system calls; raise NotMeasured if there is none."""
    for tool in ("strace", "perf"):
        if shutil.which(tool):
            return tool
    raise NotMeasured("system calls are counted by strace or perf, and neither is installed (apt install strace)")


def _requests(peer: Shmserve, seconds: float, tool: str) -> dict[str, float]:
    """Measure the kernel entries of one request, of each kind."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as cleanup:
        cleanup.callback(peer.stop)
        peer.start()
        pipe, theirs = spawn.Pipe()
        process = spawn.Process(target=_ask, args=(peer, theirs))
        process.start()
        cleanup.callback(process.join, TIMEOUT_S)
        cleanup.callback(pipe.close)
        theirs.close()
        client = _receive(pipe)
        (supervisor,) = peer.server_pids()
        (engine,) = children(supervisor)
        before = _kernel_counts(client), _kernel_counts(engine)
        requests = _told(pipe, seconds)
        client_counts, engine_counts = (
            [(now - then) / requests for now, then in zip(_kernel_counts(pid), counts, strict=True)]
            for pid, counts in zip((client, engine), before, strict=True)
        )
        with counted_calls(tool, [client]) as client_calls, counted_calls(tool, [supervisor, engine]) as daemon_calls:
            traced = _told(pipe, seconds)
    return {
        "client_calls": client_calls[0] / traced,
        "daemon_calls": daemon_calls[0] / traced,
        "client_faults": client_counts[0],
        "engine_faults": engine_counts[0],
        "client_sleeps": client_counts[1],
        "engine_sleeps": engine_counts[1],
    }


def _ask(peer: Shmserve, pipe: Connection) -> None:
    """Run a closed loop without any other call: even reading this thread's CPU time is a system call."""
    import os

    end_with_parent()
    infer, asked = peer.connect(), workload(WORKLOAD)
    for count in range(50):
        asked.stamp(count)
        asked.verify(infer(asked.observation), count)
    pipe.send(os.getpid())
    try:
        while True:
            seconds, count = pipe.recv(), 0
            end = time.monotonic() + seconds
            while time.monotonic() < end or not count:
                count += 1
                infer(asked.observation)
            pipe.send(count)
    except EOFError:
        return


def _told(pipe: Any, seconds: float) -> int:
    pipe.send(seconds)
    return _receive(pipe)


def _receive(pipe: Any) -> int:
    if not pipe.poll(TIMEOUT_S):
        raise TimeoutError(f"the client said nothing for {TIMEOUT_S:.0f} s")
    number: int = pipe.recv()
    return number


def children(pid: int) -> list[int]:
    """Return the living child processes."""
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def _kernel_counts(pid: int) -> tuple[int, int]:
    """Return the page faults (minor and major) and the voluntary context switches."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    waited = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)
    assert waited is not None
    return int(fields[7]) + int(fields[9]), int(waited[1])


@contextmanager
def counted_calls(tool: str, pids: list[int]) -> Iterator[list[int]]:
    """Count the system calls of these processes and their threads during the block, into a list of one number."""
    found: list[int] = []
    with tempfile.NamedTemporaryFile(prefix=my_prefix(), suffix=".trace") as file:
        command = {
            "strace": ["strace", "-c", "-f", "-o", file.name],
            "perf": ["perf", "trace", "-s", "-o", file.name],
        }[tool]
        for pid in pids:
            command += ["-p", str(pid)]
        tracing = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            time.sleep(ATTACH_S)
            if tracing.poll() is not None:
                assert tracing.stderr is not None
                said = tracing.stderr.read().decode(errors="replace").strip()
                raise NotMeasured(f"{tool} may not attach here: {said}")
            yield found
        finally:
            if tracing.poll() is None:
                tracing.send_signal(signal.SIGINT)
            tracing.communicate()
        found.append(calls_in(Path(file.name).read_text()))


def calls_in(report: str) -> int:
    """Return the sum of the column of calls in a report of strace or perf trace.

    >>> calls_in('''% time     seconds  usecs/call     calls    errors syscall
    ... ------ ----------- ----------- --------- --------- ----------------
    ...  60.00    0.000051          51         1           futex
    ...  40.00    0.000034          17         2         1 poll
    ... ------ ----------- ----------- --------- --------- ----------------
    ... 100.00    0.000085          28         3         1 total''')
    3
    >>> calls_in('''   syscall            calls  errors  total       min       avg       max       stddev
    ...                                    (msec)    (msec)    (msec)    (msec)        (%)
    ...   --------------- --------  ------ -------- --------- --------- ---------     ------
    ...   futex                  7      1     0.004     0.004     0.004     0.004      0.00%''')
    7
    """
    total = 0
    for line in report.splitlines():
        fields = line.split()
        if re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+\d+\s", line) and fields[-1] != "total":
            total += int(fields[3])
        elif re.match(r"\s+[a-z_0-9]+\s+\d+\s+\d+\s+[\d.]+", line):
            total += int(fields[1])
    return total


if __name__ == "__main__":
    main(TITLE, measure)
