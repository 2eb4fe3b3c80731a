"""An engine asks the kernel for short turns of the processor, and changes nothing else of how it is scheduled."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys

import pytest

from shmserve.daemon.engine.loop.time_slice import TIME_SLICE_NS
from tests.support.daemon_process import Daemon

_SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


def scheduled(pid: int) -> tuple[int, int, int]:
    """What the kernel says of a process: policy, nice, length of a turn (ns); the last is 0 before Linux 6.12."""
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    number = _SCHED_GETATTR[platform.machine()]
    assert ctypes.CDLL(None).syscall(number, pid, buffer, _ATTRIBUTES.size, 0) == 0
    _, policy, _, nice, _, runtime, _, _ = _ATTRIBUTES.unpack(buffer.raw)
    return policy, nice, runtime


pytestmark = [
    pytest.mark.skipif(
        platform.machine() not in _SCHED_GETATTR or scheduled(0)[2] == 0,
        reason="turns have one length before Linux 6.12",
    ),
    pytest.mark.sealed_too,
]


def test_an_engine_has_short_turns_and_its_supervisor_those_that_everybody_has(obedient: Daemon) -> None:
    assert scheduled(obedient.engine_pid)[2] == TIME_SLICE_NS
    assert scheduled(obedient.pid) == scheduled(0)


@pytest.mark.parametrize(
    ("before", "turn_ns"), [("os.nice(5)", TIME_SLICE_NS), ("os.sched_setscheduler(0, os.SCHED_BATCH, p)", None)]
)
def test_the_choice_of_the_operator_stays(before: str, turn_ns: int | None) -> None:
    program = (
        "import os; from shmserve.daemon.engine.loop.time_slice import request_time_slice\n"
        f"p = os.sched_param(0); {before}; request_time_slice(); print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        policy, nice, runtime = scheduled(process.pid)
        process.communicate(b"\n", timeout=30)

    if turn_ns is None:
        assert policy == os.SCHED_BATCH and runtime != TIME_SLICE_NS
    else:
        assert (policy, nice, runtime) == (os.SCHED_OTHER, min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5), turn_ns)
