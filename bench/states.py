"""States of the machine in which the benchmarks measure: quiet, disturbed, busy.

    python -m bench.states busy --seconds 30                       # only the load
    python -m bench.states disturbed --seconds 60 -- COMMAND ...   # the load while the command runs

Robots share their processors with ROS nodes and camera drivers. In each state but `quiet`, one program for every two
processors runs beside the measurement (`busy_loop.py`), pinned to nothing, bounded in time, and ended with the process
that started it, also when that is killed. The state is the same in each run, the phase of a loop to a request is not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.peers.cpu_time import of_trees
from bench.peers.peer import terminate_by_exception

if TYPE_CHECKING:
    from typing_extensions import Self

PROGRAM = Path(__file__).with_name("busy_loop.py")
#: Limit of a loop, if nothing ends it before; longer than any measurement of one workload.
LIMIT_S = 900.0
START_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class State:
    """State of the machine: each of its loops is busy for `busy_ms` of every `every_ms`; 0 is a state without loops."""

    name: str
    says: str
    busy_ms: float = 0.0
    every_ms: float = 8.0

    def loops(self) -> int:
        """Return the number of loops on this machine: one for every two processors that this process may use."""
        return max(1, len(os.sched_getaffinity(0)) // 2) if self.busy_ms else 0


STATES = {
    state.name: state
    for state in (
        State("quiet", "no program of the benchmark beside the measurement"),
        State("disturbed", "for every two processors one program that is busy 4 ms of every 8", 4.0),
        State("busy", "for every two processors one program that is always busy", 8.0),
    )
}
QUIET = STATES["quiet"]


class Load:
    """Load that keeps the machine in a state, in a `with` block."""

    def __init__(self, state: State, limit_s: float = LIMIT_S) -> None:
        self._state = state
        self._limit_s = limit_s
        self._loops: list[subprocess.Popen[bytes]] = []
        self._began = self._elapsed = 0.0
        self._used_ns = 0

    def __enter__(self) -> Self:
        count = self._state.loops()
        try:
            for index in range(count):
                self._loops.append(self._start(self._state.every_ms * index / count))
        except BaseException:
            self._end()
            raise
        self._began, self._used_ns = time.monotonic(), -of_trees(self.pids())
        return self

    def _start(self, phase_ms: float) -> subprocess.Popen[bytes]:
        numbers = (self._state.busy_ms, self._state.every_ms, self._limit_s, phase_ms, os.getpid())
        # Isolated and without site: it starts in 10 ms, and finds no module of the folder that it was started in.
        command = [sys.executable, "-IS", str(PROGRAM), *map(str, numbers)]
        loop = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert loop.stdout is not None
        if loop.stdout.readline() != b"busy\n":
            raise RuntimeError(f"{' '.join(command)} ended with status {loop.wait()} before it was busy")
        return loop

    def __exit__(self, kind: object, *_: object) -> None:
        self._elapsed, self._used_ns = time.monotonic() - self._began, self._used_ns + of_trees(self.pids())
        ended_early = self._end()
        if ended_early and kind is None:
            raise RuntimeError(
                f"{ended_early} of the busy programs ended before the measurement: it took longer than "
                f"{self._limit_s:g} s, or something killed them; measure fewer ways at once, or raise LIMIT_S"
            )

    def pids(self) -> list[int]:
        return [loop.pid for loop in self._loops]

    def share(self) -> float:
        """Return the share of all processors that the loops used, after the block."""
        return self._used_ns / 1e9 / self._elapsed / (os.cpu_count() or 1) if self._elapsed else 0.0

    def _end(self) -> int:
        """End the loops and return how many had ended by themselves."""
        loops, self._loops = self._loops, []
        early = sum(loop.poll() is not None for loop in loops)
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.communicate()
        return early


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.states",
        usage="%(prog)s [-h] [--seconds SECONDS] STATE [-- COMMAND ...]",
        description="Keep the machine in a state, alone or while a command runs.",
    )
    parser.add_argument("state", choices=STATES, help="; ".join(f"{one.name}: {one.says}" for one in STATES.values()))
    parser.add_argument("--seconds", type=float, default=30.0, help="limit of the load; default 30")
    given = list(sys.argv[1:] if arguments is None else arguments)
    at = given.index("--") if "--" in given else len(given)
    options, command = parser.parse_args(given[:at]), given[at + 1 :]
    terminate_by_exception()
    status = 0
    with Load(STATES[options.state], options.seconds + START_TIMEOUT_S) as load, suppress(KeyboardInterrupt):
        if command:
            try:
                status = subprocess.run(command, check=False, timeout=options.seconds).returncode
            except subprocess.TimeoutExpired:
                print(f"{command[0]} was ended after {options.seconds:g} s: raise --seconds", file=sys.stderr)
                status = 124
        else:
            time.sleep(options.seconds)
    print(f"{options.state}: its loops used {100 * load.share():.0f} % of the processors", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
