"""Clients in C: killed themselves, and beside engines and supervisors that are killed. Their ledger is that of the robots in Python."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from chaos.service import RobotProcess, Service, naming, wait_served
from chaos.tally import Tally, Word
from tests.support import watchdog
from tests.support.daemon_process import environment, wait_until

_ROOT = Path(__file__).resolve().parent.parent
#: Longest life of a robot before it is killed: to attach, to send requests, to wait.
_LIFE_S = 0.05
_RECLAIM_LIMIT_S = 10.0
_SEVERAL = 5
#: One of this number of kills is the engine's, and one the supervisor's.
_OTHERS = 10


def compiled(folder: Path) -> Path:
    """Compile the robot with the static library."""
    build = folder / "libshmserve"
    make = ["make", "-s", "-f", str(_ROOT / "native/libshmserve.mk"), f"BUILD={build}", f"{build}/libshmserve.a"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    source, program = _ROOT / "chaos/c_robot.c", folder / "c_robot"
    flags = [
        "-O2",
        f"-I{_ROOT}/native/include",
        str(source),
        f"{build}/libshmserve.a",
        "-lrt",
        "-ldl",
        "-lm",
        "-pthread",
    ]
    subprocess.run(["gcc", *flags, "-o", str(program)], check=True)
    return program


class _Robots:
    """Starts robots, and reaps those that have ended."""

    def __init__(self, service: Service, program: Path) -> None:
        self._service = service
        self._program = program
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, window: int, seed: int) -> RobotProcess:
        tally = Tally.create()
        daemon = self._service.daemon
        arguments = [daemon.name, daemon.runtime_dir, tally.path, seed, window, 30, self._service.gains_file]
        process = subprocess.Popen(
            watchdog.ending_with_us([str(self._program), *map(str, arguments)]),
            env=environment(),
            start_new_session=True,
        )
        watchdog.watch(process)
        robot = RobotProcess(process.pid, tally, window)
        self._processes[process.pid] = process
        self._service.adopt(robot)
        return robot

    def settle(self, robot: RobotProcess, *, killed: bool) -> None:
        self._service.settle(robot, killed=killed)
        watchdog.reap(self._processes.pop(robot.pid))

    def end(self) -> None:
        for process in self._processes.values():
            watchdog.reap(process)


def kill_beside_c_clients(service: Service, kills: int) -> str:
    """Kill clients in C, and now and then the engine or the supervisor, beside two robots in C that go on."""
    if shutil.which("gcc") is None or shutil.which("make") is None:
        return "clients in C not run: a C compiler is missing"
    robots = _Robots(service, compiled(service.folder))
    try:
        return _kill(service, robots, kills)
    finally:
        robots.end()


def _kill(service: Service, robots: _Robots, kills: int) -> str:
    honest = [robots.start(1 + number, number) for number in range(2)]
    for robot in honest:
        with naming(robot.pid, service.daemon.pid):
            wait_until("the robot had an answer", lambda robot=robot: robot.tally[Word.ATTACHED_NS], 60.0)
    baseline, engines, supervisors = service.objects(), 0, 0
    for number in range(kills):
        victim = robots.start(1 + number % 4, 100 + number)
        time.sleep(service.random.uniform(0, _LIFE_S))
        victim.kill(_RECLAIM_LIMIT_S)
        with naming(victim.pid, service.daemon.pid):
            wait_until("the channel is reclaimed", lambda most=baseline: service.objects() <= most)
        robots.settle(victim, killed=True)
        if number % _OTHERS == _OTHERS // 2:
            os.kill(service.daemon.engine_pid, signal.SIGKILL)
            engines += 1
            wait_served(honest, _SEVERAL)
            service.daemon.wait_ready()
        elif number % _OTHERS == _OTHERS - 1:
            service.daemon.kill9()
            service.daemon.package = None
            service.daemon.start()
            supervisors += 1
            wait_served(honest, _SEVERAL)
            # Segments of the next daemon; grown where the robots need it.
            baseline = max(baseline, service.objects())
    wait_served(honest, _SEVERAL)
    for robot in honest:
        robot.send(signal.SIGTERM)
        robots.settle(robot, killed=False)
    return f"{kills} clients in C killed, and beside others {engines} engines and {supervisors} supervisors"
