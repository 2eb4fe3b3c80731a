"""Watch over the processors: when this machine gave none to a program that wanted one.

    python -m chaos.processor_watch PID OUT

Two observations, until standard input ends; then they are written to OUT. The watch itself sleeps 5 ms at a time and notes how late
it was: a pause of the whole machine, or more programs than processors. And it reads what the kernel counts for each thread of the children of PID (a
daemon's engines): the time in which the thread was ready to run and had no processor.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

_SLEEP_S = 0.005
#: The threads are read every so many sleeps: it costs about a millisecond.
_SLEEPS = 4
_LEAST_S = 0.001


@dataclass
class Pauses:
    """Spans without a processor, as (begin, end, seconds, name); times by CLOCK_MONOTONIC."""

    found: list[tuple[float, float, float, str]] = field(default_factory=list)

    def within(self, begin_s: float, end_s: float) -> dict[str, float]:
        """Return the seconds of each name in the spans that touch begin_s to end_s, never longer than that."""
        summed: dict[str, float] = {}
        for began_s, ended_s, lost_s, name in self.found:
            if began_s < end_s and ended_s > begin_s:
                summed[name] = min(end_s - begin_s, summed.get(name, 0.0) + lost_s)
        return summed


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
            self.pauses.found.append((due_s, now_s, now_s - due_s, "a program that only sleeps"))

    def sample(self) -> None:
        """Note the threads that were ready and had no processor since the last sample."""
        began_s, now_s = self._sampled_s, time.monotonic()
        found: dict[Path, float] = {}
        for child in self._children.read_text().split():
            try:
                for task in Path(f"/proc/{child}/task").iterdir():
                    found[task] = int((task / "schedstat").read_text().split()[1]) / 1e9
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
        for task, waited_s in found.items():
            lost_s = waited_s - self._before.get(task, waited_s)
            if lost_s > _LEAST_S:
                own = task.name == task.parent.parent.name
                kind = "serving thread" if own else "other threads"
                self.pauses.found.append((began_s, now_s, lost_s, f"engine {task.parent.parent.name}, {kind}"))
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
