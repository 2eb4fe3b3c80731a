"""Robot of `chaos.remote_links`: it asks a link at 50 Hz and writes down where the time of each call went.

    python -m chaos.remote_robot NAME RUNTIME_DIR GAINS PRIORITY OUT

GAINS is JSON: the version of each remote model, and its gain. PRIORITY is real-time (SCHED_FIFO), unless it is 0. It asks until its standard input ends, then writes OUT. A process of
its own, because the threads of another program would compete with it for the interpreter.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shmserve.client import ShmClient

PERIOD_S = 0.02
#: Longer than any call may be: what takes this long failed.
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Call:
    """One call of the robot; times in seconds, points in time by CLOCK_MONOTONIC, which all processes of a machine share."""

    began_s: float
    taken_s: float
    source: str
    version: str
    #: From publication until the engine took the request: the wait for the engine, and for a change of the version.
    queued_s: float
    #: Where either model began and ended, by its own clock.
    model_began_s: float
    model_ended_s: float
    #: Time that this thread was ready to run and had no processor.
    no_processor_s: float

    @property
    def parts(self) -> dict[str, float]:
        """Return the seconds of each stage; together they are the call."""
        before_s = self.model_began_s - self.began_s - self.queued_s
        return {
            "waiting for the engine": self.queued_s,
            "on the way to the remote" if self.source == "remote" else "waiting for the remote": before_s,
            f"{self.source} model": self.model_ended_s - self.model_began_s,
            "on the way back": self.began_s + self.taken_s - self.model_ended_s,
        }


class Robot:
    """Asks in a loop until `ended`."""

    def __init__(self, client: ShmClient, gains: dict[str, float]) -> None:
        self.calls: list[Call] = []
        #: Failed calls and wrong actions, as text.
        self.wrong: list[str] = []
        self.ended = threading.Event()
        self._client = client
        self._gains = gains

    def run(self) -> None:
        """Ask every 20 ms; a call that takes longer delays the next one."""
        due_s, number = time.monotonic(), 0
        with Path("/proc/thread-self/schedstat").open("rb", buffering=0) as schedule:
            while not self.ended.is_set():
                number += 1
                self._ask(np.full(7, number % 1000, np.float32), schedule)
                due_s = max(due_s + PERIOD_S, time.monotonic())
                self.ended.wait(due_s - time.monotonic())

    def _ask(self, state: Any, schedule: Any) -> None:
        without_s = _without_processor(schedule)
        began_s = time.monotonic()
        try:
            reply = self._client.request({"state": state}, timeout=_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001  whatever it is belongs into the account
            self.wrong.append(f"{type(error).__name__}: {error}")
            return
        taken_s = time.monotonic() - began_s
        timing, (model_began_s, model_ended_s) = reply.timing, reply.action["ran"]
        self.calls.append(
            Call(
                began_s,
                taken_s,
                reply.source,
                reply.model_version,
                timing.queued_us / 1e6,
                float(model_began_s),
                float(model_ended_s),
                _without_processor(schedule) - without_s,
            )
        )
        gain = self._gains.get(reply.model_version, -1) if reply.source == "remote" else -1
        if not np.array_equal(reply.action["action"], state * gain):
            self.wrong.append(f"{reply.source} {reply.model_version}: not {gain} times the state")


def _without_processor(schedule: Any) -> float:
    """Return how long this thread has waited for a processor since it began."""
    schedule.seek(0)
    return int(schedule.read().split()[1]) / 1e9


def main() -> None:
    """Ask until standard input ends."""
    name, runtime_dir, gains, priority, out = sys.argv[1:]
    if int(priority):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(int(priority)))
    with ShmClient(name, runtime_dir=runtime_dir) as client:
        robot = Robot(client, json.loads(gains))
        thread = threading.Thread(target=robot.run)
        thread.start()
        sys.stdin.read()
        robot.ended.set()
        thread.join()
    Path(out).write_text(json.dumps({"calls": [asdict(call) for call in robot.calls], "wrong": robot.wrong}))


if __name__ == "__main__":
    main()
