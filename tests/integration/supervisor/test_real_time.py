"""An engine that locks its memory and takes real-time priority where that is permitted, and serves in either case."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shmserve.daemon.host.capabilities import IPC_LOCK, has_capability
from tests.support.daemon_process import SHMSERVED, Daemon

pytestmark = pytest.mark.skipif(
    shutil.which("setpriv") is None or shutil.which("prlimit") is None, reason="needs setpriv and prlimit (util-linux)"
)

_SETTINGS = ("--lock-memory", "--engine-priority", "10", "--threads", "2")
#: Neither root's capabilities nor the machine's limits permit anything.
_FORBIDDEN = ["prlimit", "--memlock=65536:65536", "--rtprio=0:0"]
_FORBIDDEN += ["setpriv", "--bounding-set=-ipc_lock,-sys_nice,-sys_resource"] if os.geteuid() == 0 else []


def locked_kib(pid: int) -> int:
    found = re.search(r"^VmLck:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def may_lock() -> bool:
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY or has_capability(IPC_LOCK)


def may_be_real_time() -> bool:
    program = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))"
    return subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, check=False).returncode == 0


def shown(daemon: Daemon) -> str:
    command = [
        str(SHMSERVED.with_name("shmserve-admin")),
        "--name",
        daemon.name,
        "--runtime-dir",
        str(daemon.runtime_dir),
    ]
    return subprocess.run([*command, "status"], capture_output=True, text=True, timeout=60, check=True).stdout


def test_an_engine_that_may_do_neither_serves_with_a_warning_for_each(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("threaded", arguments=_SETTINGS)
    daemon.starter = _FORBIDDEN
    daemon.start()

    with daemon.client() as client:
        found = client.infer({})

    assert found["serving"] == os.SCHED_OTHER
    assert locked_kib(daemon.engine_pid) == 0
    engine = daemon.status()["engine"]
    assert (engine["memory_locked"], engine["priority"]) == (False, 0)
    assert "memory not locked (see the log), no real-time priority (see the log)" in shown(daemon)
    warnings = [line for line in daemon.log.splitlines() if "has no effect" in line]
    assert len(warnings) == 2
    assert "RLIMIT_MEMLOCK is 65536 bytes" in warnings[0] and "LimitMEMLOCK=infinity" in warnings[0]
    assert "RLIMIT_RTPRIO is 0; set LimitRTPRIO=10" in warnings[1]


@pytest.mark.skipif(not may_lock(), reason="needs `ulimit -l unlimited` or CAP_IPC_LOCK")
def test_an_engine_that_may_locks_all_its_memory_and_its_supervisor_none(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("threaded", arguments=("--lock-memory",)).start()

    with daemon.client() as client:
        client.infer({})
        # Mappings that came after the lock as well: the client's channel.
        assert "priority" not in daemon.status()["engine"]
        size = re.search(r"^VmSize:\s+(\d+) kB$", Path(f"/proc/{daemon.engine_pid}/status").read_text(), re.MULTILINE)
        assert size is not None
        assert locked_kib(daemon.engine_pid) > 0.9 * int(size[1])
    assert locked_kib(daemon.pid) == 0
    assert daemon.status()["engine"]["memory_locked"] is True
    assert "memory_locked" not in daemon.status()["model"]
    assert "memory locked" in shown(daemon)
    assert "has no effect" not in daemon.log


@pytest.mark.skipif(
    not may_be_real_time(), reason="needs `ulimit -r 10` or CAP_SYS_NICE, and no container that forbids it"
)
def test_the_serving_thread_and_those_of_libraries_have_the_priority_and_nothing_else(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon("threaded", arguments=("--engine-priority", "10", "--threads", "2")).start()

    with daemon.client() as client:
        found = client.infer({})

    assert found["serving"] == os.SCHED_FIFO
    assert found["libraries"] and set(found["libraries"]) == {os.SCHED_FIFO}
    assert (found["own"], found["later"], found["program"]) == (os.SCHED_OTHER,) * 3
    assert os.sched_getparam(daemon.engine_pid).sched_priority == 10
    assert os.sched_getscheduler(daemon.pid) == os.SCHED_OTHER
    engine = daemon.status()["engine"]
    assert engine["priority"] == 10 and "memory_locked" not in engine
    assert "priority" not in daemon.status()["model"]
    assert "priority 10" in shown(daemon)
    assert "has no effect" not in daemon.log


def test_nothing_is_requested_by_default(obedient: Daemon) -> None:
    engine = obedient.status()["engine"]

    assert "memory_locked" not in engine and "priority" not in engine
    assert os.sched_getscheduler(obedient.engine_pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER
    assert locked_kib(obedient.engine_pid) == 0
    assert "real time" not in shown(obedient)
