"""Steps of the wall clock: an hour forwards or backwards changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon_process import Daemon, wait_until
from tests.robot_process import Robot

_HOUR_S = 3600

#: The wall clock as a process sees it, and as the kernel has it, are then apart: an absolute deadline of
#: the one that is waited for on the other comes an hour late or at once, as it does after a step.
_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void)
{
    static volatile long *shared;
    if (!shared) {
        int fd = open(getenv("CLOCK_OFFSET"), O_RDONLY);
        void *mapped = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
        close(fd);
        shared = mapped;
    }
    return *shared;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        now->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


class Clock:
    """The wall clock of the processes that run in `environment`."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler to make another wall clock with")
        (folder / "clock.c").write_text(_SHIM)
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(folder / "clock.so"), str(folder / "clock.c"), "-ldl"],
            check=True,
        )
        self._offset = folder / "offset"
        self.step(0)
        self.environment = {"LD_PRELOAD": str(folder / "clock.so"), "CLOCK_OFFSET": str(self._offset)}

    def step(self, offset_s: int) -> None:
        """Set the clock so many seconds off the kernel's."""
        descriptor = os.open(self._offset, os.O_RDWR | os.O_CREAT)
        os.pwrite(descriptor, struct.pack("l", offset_s), 0)
        os.close(descriptor)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.mark.parametrize(("who", "first_s"), [("client", -_HOUR_S), ("daemon", _HOUR_S), ("both", -_HOUR_S)])
def test_a_wall_clock_that_is_off_changes_nothing(
    make_daemon: Callable[..., Daemon],
    start_robot: Callable[..., Robot],
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    who: str,
    first_s: int,
) -> None:
    clock.step(first_s)
    daemon = make_daemon("obedient")
    if who != "client":
        daemon.environment = clock.environment
    daemon.start()
    for name, value in clock.environment.items() if who != "daemon" else ():
        monkeypatch.setenv(name, value)  # for the robot; this process has been linked
    robot = start_robot("clocked", daemon, tmp_path)

    # Each line comes only when what went before it has happened; no order of them takes any certain time.
    assert abs(robot.says()["off"] - (first_s if who != "daemon" else 0)) < 60
    assert robot.says() == {"served": 200}
    assert robot.says() == "a request without a timeout worth mentioning waits"
    wait_until("the policy is inside", (tmp_path / "held.entered").exists)
    clock.step(-first_s)
    assert robot.says() == {"timed out": "RequestTimeout", "behind one that was held": True}
    assert robot.says() == {"in an event loop": "RequestTimeout"}
    assert robot.says() == {"no slot": "RingFull"}
    assert not (tmp_path / "held").exists()
    (tmp_path / "held").touch()
    assert robot.says() == {"held": True}
    assert robot.says() == {"stale": "Stale", "fresh": True}
    assert robot.says() == {"served": 200}
    assert robot.says() == "done"


def test_a_daemon_that_is_stopped_after_a_step_of_the_clock_drains(
    make_daemon: Callable[..., Daemon], clock: Clock
) -> None:
    daemon = make_daemon("echo")
    daemon.environment = clock.environment
    daemon.start()
    with daemon.client() as client:
        for offset_s in (_HOUR_S, -_HOUR_S, 0, -_HOUR_S):
            clock.step(offset_s)
            assert client.infer({"x": offset_s}) == {"x": offset_s}

    daemon.stop()


def test_the_other_clock_is_really_another(clock: Clock) -> None:
    program = "import json, time; print(json.dumps([time.time(), time.monotonic()]))"

    def clocks(offset_s: int) -> tuple[float, float]:
        clock.step(offset_s)
        output = subprocess.run(
            ["python3", "-c", program], env={**os.environ, **clock.environment}, check=True, capture_output=True
        ).stdout
        wall, monotonic = json.loads(output)
        return wall, monotonic

    (now, start), (behind, later) = clocks(0), clocks(-_HOUR_S)

    assert behind < now - _HOUR_S / 2
    assert later >= start
