"""Floors that run beside the peers: the same exchange without a server, in C and in bare Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from bench.peers.asking import Sample
from bench.peers.leftovers import my_prefix
from bench.workloads import Workload

SOURCE = Path(__file__).with_name("floor.c")
WRONG_REPLY = 3
TIMEOUT_S = 600.0


class Floor(Protocol):
    """Exchange without a server."""

    @property
    def name(self) -> str: ...

    def turn(self, asked: Workload, seconds: float) -> Sample:
        """Run round trips for this long; raise if a reply does not belong to its request."""


@dataclass(frozen=True)
class CFloor:
    """Variant of the C program."""

    copies: int
    spin: bool
    program: Path
    cpus: tuple[int, int]

    @property
    def name(self) -> str:
        return f"C, {counted(self.copies)}, {'spin' if self.spin else 'sleep'}"

    def turn(self, asked: Workload, seconds: float) -> Sample:
        return sample_of(self.name, self._command(asked, seconds))

    def paced(self, asked: Workload, seconds: float, rate_hz: float) -> Sample:
        """Run round trips at a constant rate for this long."""
        return sample_of(self.name, [*self._command(asked, seconds), str(int(1e9 / rate_hz))])

    def _command(self, asked: Workload, seconds: float) -> list[str]:
        arguments = (asked.array_bytes, self.copies, int(self.spin), *self.cpus, seconds)
        return [str(self.program), *map(str, arguments)]


@dataclass(frozen=True)
class PythonFloor:
    """Floor of bare_python.py, which always spins."""

    copies: int

    @property
    def name(self) -> str:
        return f"Python, {counted(self.copies)}, spin"

    def turn(self, asked: Workload, seconds: float) -> Sample:
        command = [sys.executable, "-m", "bench.floors.bare_python", asked.name, str(self.copies), str(seconds)]
        return sample_of(self.name, command)


def counted(copies: int) -> str:
    return "1 copy" if copies == 1 else f"{copies} copies"


def sample_of(name: str, command: list[str]) -> Sample:
    """Run a floor's program and read its measurements."""
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=TIMEOUT_S)
    if done.returncode == WRONG_REPLY:
        raise RuntimeError(f"{name}: a reply was not that of its request, so {SOURCE.name} has a fault here")
    if done.returncode:
        raise RuntimeError(f"{name}: {command} ended with status {done.returncode}")
    numbers = np.frombuffer(done.stdout, np.int64)
    client_ns, server_ns, missed = (int(number) for number in numbers[:3])
    return Sample(numbers[3:], client_ns, client_ns, server_ns, missed=missed)


@contextmanager
def floors() -> Iterator[list[Floor]]:
    """Return the variants that this machine can run: none on one processor, and those in C only with a compiler."""
    cpus = two_cpus()
    compiler = shutil.which("gcc") or shutil.which("cc")
    if cpus is None:
        yield []
        return
    in_python: list[Floor] = [PythonFloor(2), PythonFloor(1)]
    if compiler is None:
        yield in_python
        return
    with tempfile.TemporaryDirectory(prefix=my_prefix()) as folder:
        program = Path(folder) / "floor"
        command = [compiler, "-O3", "-march=native", "-o", str(program), str(SOURCE), "-pthread"]
        subprocess.run(command, check=True)
        yield in_python + [CFloor(copies, spin, program, cpus) for copies in (2, 1) for spin in (False, True)]


def two_cpus() -> tuple[int, int] | None:
    """Return two processors that this process may use, of different cores if possible."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        return None
    siblings = Path(f"/sys/devices/system/cpu/cpu{allowed[0]}/topology/thread_siblings_list")
    same_core = expand(siblings.read_text()) if siblings.exists() else set()
    apart = [cpu for cpu in allowed[1:] if cpu not in same_core]
    return allowed[0], (apart or allowed[1:])[0]


def expand(cpu_list: str) -> set[int]:
    """Parse the kernel's notation for sets of processors.

    >>> sorted(expand("0,4-6"))
    [0, 4, 5, 6]
    """
    cpus: set[int] = set()
    for part in cpu_list.strip().split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
