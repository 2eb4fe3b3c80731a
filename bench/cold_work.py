"""Work of one request whose both sides were asleep before: `python -m bench.cold_work`.

Counts, not times, so they are the same on a busy machine: the instructions of each side and their code, the pages that
the processor touched, and the calls of Python. The engine's part is its whole cycle without the policy: from the result
to the reply and to sleep, and from there to the next call of the policy. The client also sleeps once: its second part
is from the reply on.

Instructions are counted by `step_counter.c`, which runs one thread step by step (ptrace; x86-64, needs a C compiler):
virtual machines rarely have the counters of `perf stat`, and callgrind would have to start the whole daemon. Pages are
those with the mark "referenced" in /proc/PID/smaps after it was cleared (/proc/PID/clear_refs), so a large page counts
as all of its small ones. Neither sees the kernel's own work. Each figure is the least of several requests, each after a
sleep of both sides. A side that is run step by step is a thousand times slower, so what a side does a few times a
second, in every request here, runs rarely at full speed: "between two sleeps" is about its size. `wake_ahead` is off, because looking for a request would count, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.peers.leftovers import my_prefix, sweep
from bench.peers.peer import end_with_parent, terminate_by_exception
from bench.peers.shmserve_at_rate import ShmserveNoWakeAhead
from bench.scale.figure import NotMeasured
from bench.scale.kernel_entries import children
from bench.service import POLICIES, Service
from bench.workloads import BUILDERS, workload

SOURCE = Path(__file__).with_name("step_counter.c")
PAGE_KB = os.sysconf("SC_PAGESIZE") // 1024
WARM_UP = 10
#: Pause before a request, and sleep of the policy: a side that is run step by step needs longer to fall asleep.
PAUSE_S, POLICY_S = 0.05, 0.02
TRACED_PAUSE_S, TRACED_POLICY_S = 2.5, 1.5
TIMEOUT_S = 120.0

#: Kinds of memory, by the flags and the path of a mapping in smaps.
KINDS = ("code", "shared memory", "other files", "private memory")


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one side for one request; `first` is before its first sleep, `second` after the last one, `between` the fewest between two."""

    first: int
    second: int
    between: int
    lines: int
    code_pages: int


def measure(name: str, repeats: int) -> dict[str, dict[str, int]]:
    """Count the work of one workload: for each side the figures by what they are."""
    program = ShmserveNoWakeAhead()
    settings = program.settings if program.available() is None else {}
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as cleanup:
        counter = compiled(cleanup)
        service = cleanup.enter_context(
            Service(POLICIES / "marked.py", model={"arrays": "numpy"}, settings=dict(settings))
        )
        pipe, theirs = spawn.Pipe()
        process = spawn.Process(target=_ask, args=(str(service.runtime_dir), name, theirs))
        process.start()
        cleanup.callback(process.join, TIMEOUT_S)
        cleanup.callback(pipe.close)
        theirs.close()
        client = _answer(pipe)
        (engine,) = [pid for pid in children(service.pids()[0]) if _serves(pid)] or children(service.pids()[0])[:1]

        def told(what: str) -> Any:
            pipe.send(what)
            return _answer(pipe)

        found: dict[str, dict[str, int]] = {}
        # A mark before and one after: for the client every other stretch is a request, for the engine the policy.
        for side, pid, offset in (("client", client, 0), ("engine", engine, 1)):
            works = stepped(counter, pid, 2 * repeats, lambda: told("ask slowly"))[offset::2]
            slept = [work for work in works if work.first]
            if not slept:
                raise NotMeasured(f"the {side} never fell asleep while it ran step by step: the machine is too busy")
            least = min(slept, key=lambda work: work.first + work.second)
            found[side] = {
                "instructions until asleep": min(work.first for work in slept),
                "instructions after the sleep": min(work.second for work in slept),
                "instructions between two sleeps": min((work.between for work in slept if work.between), default=0),
                "64-byte lines of code": least.lines,
                "pages of code (by the instructions)": least.code_pages,
            }
        touched = [(told("touch"), _touched(engine, lambda: told("ask"))) for _ in range(repeats)]
        for index, side in enumerate(("client", "engine")):
            for kind in KINDS:
                found[side][f"pages touched: {kind}"] = min(one[index][kind] for one in touched)
        for what, client_calls, engine_calls in zip(
            ("Python functions called", "built-in functions called"), *told("count"), strict=True
        ):
            found["client"][what], found["engine"][what] = client_calls, engine_calls
    return found


def compiled(cleanup: ExitStack) -> Path:
    """Compile the counter; raise NotMeasured where it cannot work."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or platform.machine() != "x86_64":
        raise NotMeasured("instructions are counted on x86-64 only, and with a C compiler (apt-get install gcc)")
    if not os.access("/proc/self/clear_refs", os.W_OK):
        raise NotMeasured("pages are counted by /proc/PID/clear_refs, which this kernel or this user does not have")
    folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix=my_prefix()))
    program = Path(folder) / "step_counter"
    subprocess.run([compiler, "-O2", "-o", str(program), str(SOURCE)], check=True)
    return program


def stepped(counter: Path, pid: int, stretches: int, request: Callable[[], object]) -> list[Work]:
    """Run a process step by step for this many stretches between its marks, while `request` makes requests."""
    command = [str(counter), str(pid), str(stretches)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tracing, ExitStack() as cleanup:
        cleanup.callback(tracing.kill)
        assert tracing.stdout is not None and tracing.stderr is not None
        if tracing.stdout.readline() != b"ready\n":
            said = tracing.stderr.read().decode().strip()
            raise NotMeasured(f"the counter may not trace here: {said} (run it as root, or allow ptrace)")
        # One request more than it needs: the first mark may be the end of a stretch.
        for _ in range(stretches // 2 + 1):
            request()
            if tracing.poll() is not None:
                break
        said_out, said_err = tracing.communicate(timeout=TIMEOUT_S)
    if tracing.returncode:
        raise NotMeasured(f"the counter failed: {said_err.decode().strip()}")
    return [Work(*map(int, line.split())) for line in said_out.splitlines()]


def _serves(pid: int) -> bool:
    """Return whether a child of the supervisor is an engine: it has the shared memory of a client."""
    try:
        return "/dev/shm/" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def _answer(pipe: Any) -> Any:
    if not pipe.poll(TIMEOUT_S):
        raise TimeoutError(f"the client said nothing for {TIMEOUT_S:.0f} s")
    return pipe.recv()


def _ask(runtime_dir: str, name: str, pipe: Connection) -> None:
    """Make a request on each command, after a sleep."""
    from shmserve.client import ShmClient

    end_with_parent()
    observation: dict[str, Any] = {**workload(name).observation, "sleep_s": POLICY_S, "count_calls": False}
    with ShmClient(runtime_dir=runtime_dir, timeout=TIMEOUT_S) as client:

        def ask() -> Any:
            time.sleep(PAUSE_S)
            os.getppid()
            reply = client.infer(observation)
            os.getppid()
            return reply

        def ask_slowly() -> None:
            observation["sleep_s"] = TRACED_POLICY_S
            time.sleep(TRACED_PAUSE_S)
            ask()
            observation["sleep_s"] = POLICY_S

        def touch() -> dict[str, int]:
            return _touched(os.getpid(), ask)

        def count() -> tuple[list[int], list[int]]:
            observation["count_calls"] = True
            ask()
            calls = {"call": 0, "c_call": 0}

            def note(frame: FrameType, event: str, argument: object) -> None:
                if event in calls:
                    calls[event] += 1

            time.sleep(PAUSE_S)
            sys.setprofile(note)
            reply = client.infer(observation)
            sys.setprofile(None)
            calls["c_call"] -= 1  # The call of setprofile itself.
            observation["count_calls"] = False
            return list(calls.values()), reply["calls"]

        for _ in range(WARM_UP):
            ask()
        commands = {"ask": ask, "ask slowly": ask_slowly, "touch": touch, "count": count}
        pipe.send(os.getpid())
        try:
            while True:
                said = commands[pipe.recv()]()
                pipe.send(said if isinstance(said, dict | tuple) and "actions" not in said else None)
        except EOFError:
            return


def _touched(pid: int, request: Callable[[], object]) -> dict[str, int]:
    """Return the pages of each kind that a process touched meanwhile."""
    Path(f"/proc/{pid}/clear_refs").write_text("1")
    request()
    return touched_in(Path(f"/proc/{pid}/smaps").read_text())


def touched_in(smaps: str) -> dict[str, int]:
    """Return the referenced pages of each kind.

    >>> touched_in('''7f00-7f01 r-xp 00000000 fe:00 10 /usr/lib/libc.so.6
    ... Rss:   8 kB
    ... Referenced:   8 kB
    ... 7f02-7f03 rw-s 00000000 00:01 11 /dev/shm/shmserve-1
    ... Referenced:   4 kB
    ... 7f04-7f05 rw-p 00000000 00:00 0 [heap]
    ... Referenced:   12 kB''')
    {'code': 2, 'shared memory': 1, 'other files': 0, 'private memory': 3}
    """
    found, kind = dict.fromkeys(KINDS, 0), KINDS[0]
    for line in smaps.splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ (\S{4}) \S+ \S+ (\d+) *(.*)", line):
            flags, inode, _ = mapping.groups()
            if "x" in flags:
                kind = "code"
            elif flags.endswith("s"):
                kind = "shared memory"
            else:
                kind = "other files" if inode != "0" else "private memory"
        elif line.startswith("Referenced:"):
            found[kind] += int(line.split()[1]) // PAGE_KB
    return found


def table(name: str, found: dict[str, dict[str, int]]) -> Table:
    """Format the work of both sides."""
    shown = Table(
        "one request, both sides asleep before", *found, title=f"{name}: counts, without the kernel and the policy"
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    for what in next(iter(found.values())):
        shown.add_row(what, *(f"{one[what]:,}" for one in found.values()))
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cold_work", description="Count the work of one request whose both sides were asleep."
    )
    parser.add_argument("--workloads", default="tiny", help=f"of {', '.join(BUILDERS)}; default tiny")
    parser.add_argument("--repeats", type=int, default=3, help="requests, of which the least counts; default 3")
    options = parser.parse_args(arguments)
    names = options.workloads.split(",")
    if unknown := [name for name in names if name not in BUILDERS]:
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(BUILDERS)}")
    terminate_by_exception()
    sweep()
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    try:
        for name in names:
            console.print(table(name, measure(name, options.repeats)))
    except NotMeasured as reason:
        console.print(f"not measured: {reason}")
        return 1
    console.print(f"{platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
