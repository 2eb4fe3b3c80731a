"""Waits of robots when their engine is killed: `python -m bench.scale.engine_deaths --kills 50 --busy-kills 10`.

Four robots ask at 50 Hz. Each kill (SIGKILL) waits until the spare engine is ready again; the wait of a robot is its
longest round trip from one kill to the next. The request that the dead engine was running may be answered with EngineLost; the
robot then asks again, and its wait goes on. A request that is not answered ends the benchmark. Without a spare engine,
measured in the same run, the next engine imports torch first. With both processors kept busy by other programs the import
of the next spare engine, which has a low priority, takes half a minute, so there are fewer of those kills.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.peers.asking import sleep_until
from bench.peers.peer import end_with_parent
from bench.service import POLICIES, Service

from .figure import Figure, main

TITLE = "Killing the engine under four robots at 50 Hz"
ROBOTS, RATE_HZ, SERVICE_US = 4, 50.0, 200
KILLS_PER_S = 5
SPARE_LIMIT_S = 300.0
BUSY = Path(__file__).parents[1] / "busy_loop.py"
BUSY_S = 3600
#: Of the robots after a kill, before the next one.
SETTLE_S = 0.5
#: heartbeat_timeout_s of the engines that hang, and how long the watchdog then waits for the stack.
HEARTBEAT_S, LAST_WORDS_S = 2, 1.0
IDLE_S = 10.0

#: Begin and end of each request (CLOCK_MONOTONIC, ns).
Requests = npt.NDArray[np.int64]


def measure(seconds: float) -> list[Figure]:
    """Measure kills, a part of them beside busy programs and a part without a spare engine."""
    kills = max(2, round(KILLS_PER_S * seconds))
    return measure_kills(kills, max(1, kills // 5), max(1, kills // 5))


def measure_kills(kills: int, busy_kills: int, cold_kills: int) -> list[Figure]:
    """Measure this many kills on a quiet machine, beside busy programs, and without a spare engine."""
    cold_ms = _waits_ms(cold_kills, spare=False)
    quiet_ms = _waits_ms(kills)
    hung_ms = _waits_ms(cold_kills, number=signal.SIGSTOP, heartbeat_timeout_s=HEARTBEAT_S) - 1e3 * HEARTBEAT_S
    with busy_programs():
        busy_ms = _waits_ms(busy_kills)
    idle = _idle_spare()
    floor = float(np.median(cold_ms))
    return [
        Figure("quiet_p50_ms", f"longest wait of each robot, p50 of {kills} kills", float(np.median(quiet_ms)), "ms", floor, "without a spare engine"),
        Figure("quiet_p99_ms", "p99", float(np.percentile(quiet_ms, 99)), "ms", float(cold_ms.max()), "the longest"),
        Figure("busy_p50_ms", f"both processors busy, p50 of {busy_kills} kills", float(np.median(busy_ms)), "ms"),
        Figure("busy_p99_ms", "p99", float(np.percentile(busy_ms, 99)), "ms"),
        Figure("hung_p50_ms", f"the engine hangs (SIGSTOP): beyond heartbeat_timeout_s, p50 of {cold_kills}", float(np.median(hung_ms)), "ms", 1e3 * LAST_WORDS_S, "from SIGABRT to SIGKILL"),
        Figure("idle_mib", "private memory of an idle spare engine, MiB", idle[0], ""),
        Figure("idle_cpu", f"its share of one processor, over {IDLE_S:g} s", idle[1], "%"),
    ]  # fmt: skip


@contextmanager
def busy_programs() -> Iterator[None]:
    """Keep every processor busy meanwhile."""
    command = [sys.executable, str(BUSY), "10", "10", str(BUSY_S), "0", str(os.getpid())]
    programs = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _idle_spare() -> tuple[float, float]:
    """Return the private memory (MiB) and the processor time (percent) of a spare engine that waits."""
    with Service(POLICIES / "timed.py") as service:
        spare = service.status()["engine"]["spare"]
        times = Path(f"/proc/{spare['pid']}/schedstat")
        before_ns, began_s = int(times.read_text().split()[0]), time.monotonic()
        time.sleep(IDLE_S)
        used_ns = int(times.read_text().split()[0]) - before_ns
        return spare["memory_bytes"] / (1 << 20), 1e-7 * used_ns / (time.monotonic() - began_s)


def _waits_ms(
    kills: int, *, spare: bool = True, number: int = signal.SIGKILL, heartbeat_timeout_s: int = 30
) -> npt.NDArray[np.float64]:
    """Return the longest wait of each robot at each signal `number` to the engine."""
    settings = {"spare_engine": spare, "heartbeat_timeout_s": heartbeat_timeout_s}
    with ExitStack() as cleanup:
        service = cleanup.enter_context(Service(POLICIES / "timed.py", settings=settings))
        robots = [Robot(service) for _ in range(ROBOTS)]
        for robot in robots:
            cleanup.callback(robot.close)
        for robot in robots:
            robot.wait_attached()
        killed_ns: list[int] = []
        for _ in range(kills):
            _wait_for_restarts(service, len(killed_ns))
            wait_for_engine(service, spare=spare)
            time.sleep(SETTLE_S)
            pid = service.status()["engine"]["pid"]
            killed_ns.append(time.monotonic_ns())
            os.kill(pid, number)
        _wait_for_restarts(service, kills)
        time.sleep(SETTLE_S)
        requests = [robot.end() for robot in robots]
    return np.concatenate([longest_ms(each, killed_ns) for each in requests])


def longest_ms(requests: Requests, killed_ns: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return the longest round trip from each kill to the next.

    >>> requests = np.array([[0, 1], [20, 21], [40, 90], [100, 101], [120, 180]]) * 1_000_000
    >>> longest_ms(requests, [50_000_000, 150_000_000]).tolist()
    [50.0, 60.0]
    """
    began, ended = requests.T
    until = [*killed_ns[1:], np.iinfo(np.int64).max]
    took = (ended - began) / 1e6
    return np.array(
        [
            took[(ended >= kill) & (began < end) & (ended < end)].max()
            for kill, end in zip(killed_ns, until, strict=True)
        ]
    )


def _wait_for_restarts(service: Service, restarts: int) -> None:
    """Wait until this many engines were replaced."""
    until = time.monotonic() + SPARE_LIMIT_S
    while True:
        engine = service.status()["engine"]
        if engine is not None and engine["restarts"] == restarts:
            return
        if time.monotonic() > until:
            raise RuntimeError(f"not {restarts} restarts within {SPARE_LIMIT_S:g} s: {engine}\n{service.log}")
        time.sleep(0.2)


def wait_for_engine(service: Service, *, spare: bool) -> None:
    """Wait until an engine serves, and with `spare` until the next one is ready."""
    until = time.monotonic() + SPARE_LIMIT_S
    while True:
        status = service.status()
        if status["state"] == "ready" and (not spare or status["engine"]["spare"]["state"] == "ready"):
            return
        if time.monotonic() > until:
            raise RuntimeError(f"no spare engine within {SPARE_LIMIT_S:g} s: {status['engine']}\n{service.log}")
        time.sleep(0.2)


class Robot:
    """A process that asks at a constant rate until `end` is called."""

    def __init__(self, service: Service) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_ask, args=(str(service.runtime_dir), theirs))
        self._process.start()
        theirs.close()

    def wait_attached(self) -> None:
        self._receive()

    def end(self) -> Requests:
        """Return its requests; raises ConnectionError if one failed."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and said why
            self._pipe.send(None)
        return np.array(self._receive(), np.int64)

    def _receive(self) -> list[tuple[int, int]]:
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise ConnectionError(f"a robot's request failed: {answer}")
        found: list[tuple[int, int]] = answer
        return found

    def close(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _ask(runtime_dir: str, pipe: Connection) -> None:
    from shmserve.client import EngineLost, ShmClient

    end_with_parent()
    requests: list[tuple[int, int]] = []
    period_ns = int(1e9 / RATE_HZ)
    try:
        with ShmClient(runtime_dir=runtime_dir, timeout=120.0, rate=RATE_HZ) as client:
            client.infer({"service_us": SERVICE_US, "number": 0})
            pipe.send(requests)
            due = time.monotonic_ns()
            while not pipe.poll():
                due = max(due + period_ns, time.monotonic_ns())
                sleep_until(due)
                began = time.monotonic_ns()
                number = len(requests)
                observation = {"service_us": SERVICE_US, "number": number}
                try:
                    answer = client.infer(observation)
                except EngineLost:  # the dead engine ran it, and other robots wait
                    answer = client.infer(observation)
                if answer["number"] != number:
                    raise ValueError(f"request {number} has the reply to another one")
                requests.append((began, time.monotonic_ns()))
        pipe.send(requests)
    except Exception as error:  # noqa: BLE001  the benchmark raises it
        pipe.send(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--busy-kills", type=int, default=10)
    options, others = parser.parse_known_args()
    main(TITLE, lambda seconds: measure_kills(options.kills, options.busy_kills, 5), others)
