"""Compiles floor.c and runs it beside the peers: how fast this machine can do the same exchange at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.peers.closed_loop import Sample
from bench.peers.leftovers import my_prefix

SOURCE = Path(__file__).with_name("floor.c")
WRONG_REPLY = 3


@dataclass(frozen=True)
class Floor:
    """One variant of the C program."""

    copies: int
    spin: bool
    program: Path
    cpus: tuple[int, int]

    @property
    def name(self) -> str:
        return f"C, {self.copies} cop{'y' if self.copies == 1 else 'ies'}, {'spin' if self.spin else 'sleep'}"

    def turn(self, array_bytes: int, seconds: float) -> Sample:
        """Round trips of one request with so many bytes at a time; raises when a reply was not that of its request."""
        arguments = (array_bytes, self.copies, int(self.spin), *self.cpus, seconds)
        done = subprocess.run([self.program, *map(str, arguments)], stdout=subprocess.PIPE, check=False)
        if done.returncode == WRONG_REPLY:
            raise RuntimeError(f"{self.name}: a reply was not that of its request, so {SOURCE.name} has a fault here")
        if done.returncode:
            raise RuntimeError(f"{self.name}: {self.program} {arguments} ended with status {done.returncode}")
        numbers = np.frombuffer(done.stdout, np.int64)
        client_ns, server_ns = (int(number) for number in numbers[:2])
        return Sample(numbers[2:], client_ns, client_ns, server_ns)


@contextmanager
def floors() -> Iterator[list[Floor]]:
    """The four variants, compiled for this machine; none where there is no compiler or only one processor."""
    cpus = two_cpus()
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or cpus is None:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix=my_prefix()) as folder:
        program = Path(folder) / "floor"
        command = [compiler, "-O3", "-march=native", "-o", str(program), str(SOURCE), "-pthread"]
        subprocess.run(command, check=True)
        yield [Floor(copies, spin, program, cpus) for copies in (2, 1) for spin in (False, True)]


def two_cpus() -> tuple[int, int] | None:
    """Two processors that this process may use, of different cores where there are such."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        return None
    siblings = Path(f"/sys/devices/system/cpu/cpu{allowed[0]}/topology/thread_siblings_list")
    same_core = expand(siblings.read_text()) if siblings.exists() else set()
    apart = [cpu for cpu in allowed[1:] if cpu not in same_core]
    return allowed[0], (apart or allowed[1:])[0]


def expand(cpu_list: str) -> set[int]:
    """The kernel's notation for sets of processors.

    >>> sorted(expand("0,4-6"))
    [0, 4, 5, 6]
    """
    cpus: set[int] = set()
    for part in cpu_list.strip().split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
