"""Command that runs the corpus and seeded mutations of it through the targets, without instrumentation.

    python -m fuzz.replay [--inputs 200000] [--seed 1] [--target NAME ...]

Each named target runs its seeds, its corpus, and then its share of `--inputs` mutations of both.

The same seed gives the same mutations. The last lines are the number of inputs by target; a finding ends the run, with the
input.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fuzz import corpus
from fuzz.all_targets import SHARES, load, split
from fuzz.mutation import Mutator
from fuzz.target import MEMORY_LIMIT_BYTES, TIME_LIMIT_S, Target

#: Inputs between two checks of the memory.
_STRIDE = 100
#: proc(5): resets the peak resident memory of this process to the current value.
_FORGET_THE_PEAK = "5"


class Finding(Exception):
    """Input that breaks a parser: the target, the input and the effect."""

    def __init__(self, target: str, data: bytes, what: str) -> None:
        super().__init__(f"{target}: {what}\n  input of {len(data)} bytes: {data[:200]!r}")
        self.target = target
        self.data = data


@dataclass(frozen=True)
class Ran:
    """Statistics of one target."""

    inputs: int
    seconds: float
    slowest_s: float


def run_one(name: str, target: Target, data: bytes) -> float:
    """Run one input and return its seconds; raise Finding."""
    began_s = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, 10 * TIME_LIMIT_S)
    try:
        target.run(data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Finding(name, data, f"{type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return time.perf_counter() - began_s


def replay(name: str, target: Target, inputs: int, seed: int) -> Ran:
    """Run the seeds, the corpus, and `inputs` mutations of both; raise Finding."""
    began_s = time.perf_counter()
    known = [*target.seeds(), *corpus.read(name)]
    for data in known:
        run_one(name, target, data)
    Path("/proc/self/clear_refs").write_text(_FORGET_THE_PEAK)
    memory = _memory_bytes()
    mutator = Mutator(seed, known, target.words)
    slowest_s = 0.0
    for number in range(inputs):
        data = mutator.next()
        took_s = run_one(name, target, data)
        slowest_s = max(slowest_s, took_s)
        # Twice: on a busy machine another process may have used the processor.
        if took_s > TIME_LIMIT_S and min(run_one(name, target, data), run_one(name, target, data)) > TIME_LIMIT_S:
            raise Finding(name, data, f"took {took_s:.1f} s, the limit is {TIME_LIMIT_S:g}")
        if number % _STRIDE == 0 and _memory_bytes() - memory > MEMORY_LIMIT_BYTES:
            raise Finding(name, data, f"the process grew by {_memory_bytes() - memory} bytes")
    return Ran(len(known) + inputs, time.perf_counter() - began_s, slowest_s)


def _memory_bytes() -> int:
    """Return the peak resident memory of this process since the last reset."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _hang(number: int, frame: object) -> None:
    raise TimeoutError(f"more than {10 * TIME_LIMIT_S:g} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", choices=list(SHARES), help="all unless given")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, _hang)
    total = 0
    for name, inputs in split(arguments.inputs, arguments.target or SHARES).items():
        try:
            ran = replay(name, load(name), inputs, arguments.seed)
        except Finding as finding:
            saved = Path(f"finding-{name}")
            saved.write_bytes(finding.data)
            print(f"FINDING {finding}\n  saved as {saved}", file=sys.stderr)
            raise
        total += ran.inputs
        print(
            f"{name:14} {ran.inputs:>10,} inputs  {ran.inputs / ran.seconds:>8,.0f} a second  "
            f"slowest {ran.slowest_s * 1000:.1f} ms",
            flush=True,
        )
    print(f"{total:,} inputs, no finding (seed {arguments.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
