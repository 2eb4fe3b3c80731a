"""Watch over the processors: when this machine gave none to a program that wanted one.

    python -m chaos.processor_watch PID OUT

Two observations, until standard input ends; then they are written to OUT. The watch itself sleeps 5 ms at a time and notes how late
it was: a pause of the whole machine, or more programs than processors. And it reads what the kernel counts for each thread of the children of PID (a
daemon's engines): the time in which the thread was ready to run and had no processor.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_SLEEP_S = 0.005
#: Sleeps between two readings of the threads, which cost about a millisecond each.
_SLEEPS = 4
_LEAST_S = 0.001


class Pause(NamedTuple):
    """A span in which a thread was ready to run and had no processor for `lost_s`; times by CLOCK_MONOTONIC."""

    began_s: float
    ended_s: float
    lost_s: float
    name: str
    thread: int


class Pauses:
    """The pauses that a watch has found."""

    def __init__(self, found: Iterable[Sequence[Any]] = ()) -> None:
        self.found = [Pause(*each) for each in found]

    def within(self, begin_s: float, end_s: float) -> dict[str, float]:
        """Return for each name the longest time that one of its threads lost between begin_s and end_s."""
        by_thread: dict[tuple[str, int], float] = {}
        for pause in self.found:
            if pause.began_s < end_s and pause.ended_s > begin_s:
                key = pause.name, pause.thread
                by_thread[key] = by_thread.get(key, 0.0) + pause.lost_s
        longest: dict[str, float] = {}
        for (name, _), lost_s in by_thread.items():
            longest[name] = max(longest.get(name, 0.0), min(end_s - begin_s, lost_s))
        return longest


class Watch:
    """Takes samples; `pauses` has what was found."""

    def __init__(self, pid: int) -> None:
        self.pauses = Pauses()
        self._children = Path(f"/proc/{pid}/task/{pid}/children")
        self._before: dict[Path, float] = {}
        self._sampled_s = time.monotonic()

    def sleep(self) -> None:
        """Sleep once, and note how late it ended."""
        due_s = time.monotonic() + _SLEEP_S
        time.sleep(_SLEEP_S)
        now_s = time.monotonic()
        if now_s - due_s > _LEAST_S:
            self.pauses.found.append(Pause(due_s, now_s, now_s - due_s, "a program that only sleeps", 0))

    def sample(self) -> None:
        """Note the threads that were ready and had no processor since the last sample."""
        began_s, now_s = self._sampled_s, time.monotonic()
        found: dict[Path, float] = {}
        normal = os.getpriority(os.PRIO_PROCESS, 0)
        for child in self._children.read_text().split():
            try:
                if os.getpriority(os.PRIO_PROCESS, int(child)) > normal:
                    continue  # an engine that still loads: it is in the background, and serves no client
                for task in Path(f"/proc/{child}/task").iterdir():
                    found[task] = int((task / "schedstat").read_text().split()[1]) / 1e9
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
        for task, waited_s in found.items():
            lost_s = waited_s - self._before.get(task, waited_s)
            if lost_s > _LEAST_S:
                own = task.name == task.parent.parent.name
                kind = "serving thread" if own else "other threads"
                name = f"engine {task.parent.parent.name}, {kind}"
                self.pauses.found.append(Pause(began_s, now_s, lost_s, name, int(task.name)))
        self._before, self._sampled_s = found, now_s


def main() -> None:
    """Watch until standard input ends."""
    pid, out = sys.argv[1:]
    ended = threading.Event()

    def until_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=until_the_end, daemon=True).start()
    watch, number = Watch(int(pid)), 0
    while not ended.is_set():
        watch.sleep()
        number += 1
        if number % _SLEEPS == 0:
            watch.sample()
    Path(out).write_text(json.dumps(watch.pauses.found))


if __name__ == "__main__":
    main()
