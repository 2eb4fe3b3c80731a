"""Robot that checks every reply and counts every event in its tally.

    python -m chaos.robot NAME RUNTIME_DIR GAINS    then one line of JSON for each robot, on standard input

Robots are forked from a process that has imported everything: starting a thousand interpreters would take longer than
killing them. The line says {"tally": path, "seed": n, "window": n, "timeout": s, "step": name or null, "cycles": n or
null, "grows": bool, "forks": bool}; the answer is the robot's process id. GAINS is a file: which version has which k.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chaos.steps import die_at
from chaos.tally import Tally, Word
from shmserve.client import ClientForked, InferenceFailed, Pending, ShmClient, ShmServeError

#: A machine with more processes than processors may delay any of them this long.
_SCHEDULING_S = 0.5
#: A refused child stays this long, with the socket and the memory that it inherited.
_CHILD_LIVES_S = 1.0
_FORKS_OF_A_CYCLE = 0.1


class Robot:
    """Robot that requests y = k * x until it must end, with up to `window` requests in flight."""

    def __init__(self, name: str, runtime_dir: str, gains: Path, order: dict[str, Any]) -> None:
        self._tally = Tally.open(Path(order["tally"]))
        self._random = random.Random(order["seed"])
        self._gains_file = gains
        self._gains: dict[str, float] = json.loads(gains.read_text())
        self._forks: bool = order["forks"]
        self._window: int = order["window"]
        self._timeout_s: float = order["timeout"]
        self._cycles: int | None = order["cycles"]
        # A killed daemon is back within seconds; a request waits for it meanwhile.
        self._client = ShmClient(
            name,
            runtime_dir=runtime_dir,
            slots=self._window,
            timeout=60,
            max_retries=3000,
            retry_delay=0.02,
            check_contract=False,  # observations have many lengths
        )
        #: Lengths of observations; the longest of a robot that resizes does not fit its first channel.
        self._lengths = (1, 3, 40, 20_000) if order["grows"] else (1, 3, 40, 1000)
        self._number = 0
        self.stopped = False

    def heard_signal(self) -> None:
        self._tally.add(Word.SIGNALS)

    def run(self) -> None:
        out: deque[tuple[dict[str, Any], Pending]] = deque()
        while not self.stopped and (self._cycles is None or self._number < self._cycles):
            if self._random.random() < 0.5 or self._window == 1:
                self._infer()
                continue
            while len(out) < self._window:
                self._submit(out)
            if self._forks and self._random.random() < _FORKS_OF_A_CYCLE:
                self._fork(out[0][1] if out else None)
            while out:
                self._settle(*out.popleft())
        self._client.close()

    def _observation(self) -> dict[str, Any]:
        self._number += 1
        length = self._random.choice(self._lengths)
        return {"x": np.full(length, self._number), "robot": "chaos"}

    def _infer(self) -> None:
        sent = self._observation()
        self._tally.add(Word.SUBMITTED)
        until_s = time.monotonic() + self._timeout_s
        try:
            reply = self._client.request(sent, timeout=self._timeout_s)
            if time.monotonic() > until_s + _SCHEDULING_S:
                self._tally.add(Word.LATE)
            self._judge(sent, reply.action, reply.model_version)
        except ShmServeError as error:
            self._failed(error)
        except Exception as error:  # noqa: BLE001  this run searches for it
            self._untyped(error)

    def _submit(self, out: deque[tuple[dict[str, Any], Pending]]) -> None:
        sent = self._observation()
        self._tally.add(Word.SUBMITTED)
        try:
            out.append((sent, self._client.submit(sent, timeout=self._timeout_s)))
        except ShmServeError as error:
            self._failed(error)
        except Exception as error:  # noqa: BLE001
            self._untyped(error)

    def _settle(self, sent: dict[str, Any], pending: Pending) -> None:
        try:
            found = pending.result()
            self._judge(sent, found, pending.reply.model_version if pending.reply is not None else "")
        except ShmServeError as error:
            self._failed(error)
        except Exception as error:  # noqa: BLE001
            self._untyped(error)

    def _judge(self, sent: dict[str, Any], found: Any, version: str) -> None:
        if version not in self._gains:
            self._gains = json.loads(self._gains_file.read_text())
        k = self._gains.get(version)
        if k is None or found["k"] != k or not np.array_equal(found["y"], sent["x"] * k):
            print(f"WRONG: {found} of version {version} for {sent}", file=sys.stderr, flush=True)
            self._tally.add(Word.WRONG)
        self._tally.add(Word.RESULTS)
        if not self._tally[Word.ATTACHED_NS]:
            self._tally.words[Word.ATTACHED_NS] = time.monotonic_ns()

    def _fork(self, pending: Pending | None) -> None:
        """Fork with requests in flight: the child uses its parent's client, and stays a while."""
        reading, writing = os.pipe()
        if os.fork() == 0:
            try:
                os.write(writing, b"refused" if self._is_refused(pending) else b"served")
                os.close(writing)
                time.sleep(_CHILD_LIVES_S)
            finally:
                os._exit(0)
        os.close(writing)
        heard = os.read(reading, 16)
        os.close(reading)
        if heard != b"refused":
            print(f"A FORKED CHILD WAS {heard!r}", file=sys.stderr, flush=True)
        self._tally.add(Word.CHILDREN if heard == b"refused" else Word.WRONG)

    def _is_refused(self, pending: Pending | None) -> bool:
        ways: list[Callable[[], object]] = [
            lambda: self._client.infer({"x": np.arange(3)}),
            lambda: self._client.submit({"x": np.arange(3)}),
        ]
        for way in (*ways, *([pending.result] if pending is not None else [])):
            try:
                way()
            except ClientForked:
                continue
            return False
        return True

    def _failed(self, error: ShmServeError) -> None:
        if isinstance(error, InferenceFailed):
            self._tally.add(Word.WRONG)  # this model never fails
            print(f"FAILED: {error}", file=sys.stderr, flush=True)
        self._tally.add(Word.ERRORS)

    def _untyped(self, error: Exception) -> None:
        print(f"UNTYPED: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        self._tally.add(Word.UNTYPED)
        self._tally.add(Word.ERRORS)


def _be_robot(name: str, runtime_dir: str, gains: Path, order: dict[str, Any]) -> None:
    robot = Robot(name, runtime_dir, gains, order)
    signal.signal(signal.SIGUSR1, lambda number, frame: robot.heard_signal())

    def stop(number: int, frame: object) -> None:
        robot.stopped = True

    signal.signal(signal.SIGTERM, stop)
    if order["step"] is not None:
        die_at(order["step"])
    robot.run()


def main() -> int:
    name, runtime_dir, gains = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                sys.stdin.close()
                _be_robot(name, runtime_dir, gains, json.loads(line))
                status = 0
            finally:
                os._exit(status)
        print(pid, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
