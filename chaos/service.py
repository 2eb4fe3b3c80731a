"""Real daemon with its robots, and the account of their requests."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import final

import numpy as np

from chaos.process_state import describe, wait_dead
from chaos.tally import Account, Tally, Word
from shmserve.client import ShmServeError
from tests.support import watchdog
from tests.support.daemon_process import Daemon, environment, is_running, wait_until
from tests.support.gain_packages import gain_package, gains

_ROOT = Path(__file__).resolve().parent.parent


class RobotProcess:
    """Robot, as the run sees it."""

    def __init__(self, pid: int, tally: Tally, window: int) -> None:
        self.pid = pid
        self.tally = tally
        self.window = window
        try:
            self._pidfd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:  # it has killed itself already
            self._pidfd = None

    def send(self, number: int) -> None:
        """Kill it; a robot that has ended is not an error."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self, limit_s: float) -> None:
        """Send SIGKILL and wait until it is dead; raise AssertionError with its state if it is not."""
        self.send(signal.SIGKILL)
        if self._pidfd is not None:
            wait_dead(self.pid, self._pidfd, limit_s)

    def close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)

    @property
    def ended(self) -> bool:
        return not is_running(self.pid)


@final
class Service:
    """Daemon of y = k * x, used as `with Service(transport) as service`; at the end every request is accounted for."""

    def __init__(self, transport: str, seed: int, *, begins: bool = True, spare: bool = False) -> None:
        """Start the daemon on entering the block, or with `begin` inside it."""
        self.transport = transport
        self._begins = begins
        self.random = random.Random(seed)
        self._folder = tempfile.TemporaryDirectory(prefix="shmserve-chaos-")
        self.folder = Path(self._folder.name)
        package = gain_package(self.folder, 3)
        self._packages = [package]
        #: Which version has which k.
        self.gains_file = self.folder / "gains.json"
        self.gains_file.write_text(gains(package))
        #: Resources that a fault has set up beside the service, released after the service has ended.
        self.undo = contextlib.ExitStack()
        self._nursery: subprocess.Popen[str] | None = None
        config = 'log_level = "warning"\nban_s = 0\n'
        self.daemon = Daemon(package, arguments=("--transport", transport), config=config, spare=spare)
        self.account = Account()
        self._robots: list[RobotProcess] = []
        self._count = 0

    def __enter__(self) -> Service:
        if self._begins:
            self.begin({})
        return self

    def begin(self, environment: dict[str, str]) -> None:
        """Start the daemon, and the process that robots are forked from, with these variables."""
        self.daemon.environment |= environment
        self.daemon.start()
        self._start_nursery(environment)

    def package(self, k: float, *, bytes_beside: int = 0) -> Path:
        """Make a model of y = k * x; additional bytes make it another version each time."""
        folder = self.folder / f"packages-{len(self._packages)}" if bytes_beside else self.folder
        path = folder / f"gain-{k}"
        if not path.exists():
            gain_package(folder, k)
            if bytes_beside:
                (path / "weights.bin").write_bytes(os.urandom(bytes_beside))
            self._packages.append(path)
            # Renamed, because a robot may be reading it.
            fresh = self.gains_file.with_suffix(".fresh")
            fresh.write_text(gains(*self._packages))
            fresh.rename(self.gains_file)
        return path

    def visit(self) -> bool:
        """Attach, request, resize, request, leave; return whether a typed error ended it. Raise any other error."""
        with (
            contextlib.suppress(ShmServeError),
            self.daemon.client(max_retries=0, timeout=5, check_contract=False) as client,
        ):
            for length in (3, 100_000):
                x = np.arange(length)
                found = client.infer({"x": x, "robot": "visitor"})
                assert np.array_equal(found["y"], x * found["k"])
            return False
        return True

    def _start_nursery(self, variables: dict[str, str]) -> None:
        command = [sys.executable, "-m", "chaos.robot", self.daemon.name]
        command += [str(self.daemon.runtime_dir), str(self.gains_file)]
        self._nursery = subprocess.Popen(
            watchdog.ending_with_us(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={**environment(), **variables},
            start_new_session=True,
        )
        watchdog.watch(self._nursery)

    def _end_nursery(self) -> None:
        if self._nursery is not None:
            watchdog.reap(self._nursery)
            if self._nursery.stdin is not None and self._nursery.stdout is not None:
                self._nursery.stdin.close()
                self._nursery.stdout.close()

    def robot(
        self,
        *,
        window: int = 1,
        timeout_s: float = 30.0,
        step: str | None = None,
        cycles: int | None = None,
        grows: bool = False,
        forks: bool = False,
    ) -> RobotProcess:
        """Start a robot, which sends requests without a pause."""
        self._count += 1
        tally = Tally.create()
        order = {
            "tally": str(tally.path),
            "seed": self._count,
            "window": window,
            "timeout": timeout_s,
            "step": step,
            "cycles": cycles,
            "grows": grows,
            "forks": forks,
        }
        assert self._nursery is not None, "it has not begun"
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        print(json.dumps(order), file=self._nursery.stdin, flush=True)
        robot = RobotProcess(int(self._nursery.stdout.readline()), tally, window)
        self._robots.append(robot)
        return robot

    def busy_robots(self, count: int, *, window: int = 2) -> list[RobotProcess]:
        """Start robots and wait until each has its first reply."""
        robots = [self.robot(window=1 + number % window) for number in range(count)]
        for robot in robots:
            with naming(robot.pid, self.daemon.pid):
                wait_until("the robot had an answer", lambda robot=robot: robot.tally[Word.ATTACHED_NS], 60.0)
        return robots

    def adopt(self, robot: RobotProcess) -> None:
        """Account for a robot that was started elsewhere."""
        self._robots.append(robot)

    def settle(self, robot: RobotProcess, *, killed: bool) -> None:
        """Close the account of a robot that has ended."""
        with naming(robot.pid):
            wait_until("the robot has ended", lambda: robot.ended, 90.0)
        robot.close()
        self._robots.remove(robot)
        self.account.close(robot.tally, killed=killed, window=robot.window)

    def objects(self) -> int:
        """Return the segments and doorbells that exist for clients, by name or by descriptor."""
        if self.transport == "named":
            return len(self.daemon.names_in_shm())
        return _memory_descriptors(self.daemon.pid)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for robot in list(self._robots):
                    robot.send(signal.SIGTERM)
                for robot in list(self._robots):
                    self.settle(robot, killed=False)
                self.account.check()
        finally:
            self._end_nursery()
            try:
                self.daemon.dismiss()  # asserts that no object is left
            finally:
                self.undo.close()
                self._folder.cleanup()


@contextlib.contextmanager
def naming(*pids: int) -> Iterator[None]:
    """Add the state of these processes to a failed assertion."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *map(describe, pids)])) from error


def _memory_descriptors(pid: int) -> int:
    found = 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            found += os.readlink(entry.path).startswith("/memfd:shmserve")
        except OSError:
            continue
    return found


def wait_served(robots: list[RobotProcess], more: int = 1, limit_s: float = 90.0) -> float:
    """Wait until each of these robots has n more results; return the seconds that it took."""
    began_s = time.monotonic()
    before = [robot.tally[Word.RESULTS] for robot in robots]

    def served() -> bool:
        return all(robot.tally[Word.RESULTS] >= count + more for robot, count in zip(robots, before, strict=True))

    with naming(*(robot.pid for robot in robots)):
        wait_until("every robot is served", served, limit_s)
    return time.monotonic() - began_s
