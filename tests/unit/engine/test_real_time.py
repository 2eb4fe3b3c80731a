"""Decisions about locked memory and real-time priority: by limits and capabilities, without a process."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import resource
import threading
from pathlib import Path

import pytest

from shmserve.daemon.engine import memory_lock, real_time_priority
from shmserve.daemon.engine.memory_lock import limit_problem, lock_memory
from shmserve.daemon.engine.real_time_priority import SERVICE_THREADS, refusal, request_priority
from shmserve.daemon.host.capabilities import IPC_LOCK, SYS_NICE, has_capability

_NOT_PERMITTED = PermissionError(errno.EPERM, "Operation not permitted")


# Capabilities


@pytest.mark.parametrize(
    ("effective", "uid_map", "expected"),
    [
        ("000001fffeffffff", "         0          0 4294967295\n", True),
        ("0000000000004000", "         0          0 4294967295\n", True),
        ("000001fffeffbfff", "         0          0 4294967295\n", False),
        ("0000000000000000", "         0          0 4294967295\n", False),
        ("000001ffffffffff", "         0       1000          1\n", False),
    ],
)
def test_a_capability_counts_in_the_machine_s_own_user_namespace(
    tmp_path: Path, effective: str, uid_map: str, expected: bool
) -> None:
    (tmp_path / "status").write_text(f"Name:\tpython3\nCapPrm:\tffffffffffffffff\nCapEff:\t{effective}\nThreads:\t1\n")
    (tmp_path / "uid_map").write_text(uid_map)

    assert has_capability(IPC_LOCK, tmp_path) == expected


# Memory


@pytest.mark.parametrize(
    ("limit_bytes", "is_exempt", "problem"),
    [
        (resource.RLIM_INFINITY, False, None),
        (8 << 20, True, None),
        (0, True, None),
        (8 << 20, False, "RLIMIT_MEMLOCK is 8388608 bytes"),
        (1 << 40, False, "RLIMIT_MEMLOCK is 1099511627776 bytes"),
        (0, False, "RLIMIT_MEMLOCK is 0 bytes"),
    ],
)
def test_memory_is_not_locked_under_a_finite_limit(limit_bytes: int, is_exempt: bool, problem: str | None) -> None:
    found = limit_problem(limit_bytes, is_exempt)

    assert (found is None) == (problem is None)
    assert found is None or problem is None or problem in found


def test_a_finite_limit_is_one_warning_with_the_remedy_and_no_system_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda number: (65536, 65536))
    monkeypatch.setattr(memory_lock, "has_capability", lambda number: False)
    monkeypatch.setattr(ctypes, "CDLL", None)

    assert lock_memory() is False

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "RLIMIT_MEMLOCK is 65536 bytes" in record.message and "LimitMEMLOCK=infinity" in record.message


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOMEM, errno.EAGAIN])
def test_a_refusal_by_the_kernel_is_one_warning_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    class Libc:
        @staticmethod
        def mlockall(flags: int) -> int:
            return -1

    monkeypatch.setattr(resource, "getrlimit", lambda number: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: Libc)
    monkeypatch.setattr(ctypes, "get_errno", lambda: number)

    assert lock_memory() is False

    (record,) = caplog.records
    assert f"mlockall failed ({os.strerror(number)})" in record.message and "LimitMEMLOCK=infinity" in record.message


# Priority


@pytest.mark.parametrize(
    ("limit", "is_exempt", "remedy"),
    [
        (0, False, "RLIMIT_RTPRIO is 0; set LimitRTPRIO=10"),
        (9, False, "RLIMIT_RTPRIO is 9; set LimitRTPRIO=10"),
        (10, False, "RestrictRealtime=no"),
        (resource.RLIM_INFINITY, False, "RestrictRealtime=no"),
        (0, True, "CONFIG_RT_GROUP_SCHED"),
    ],
)
def test_a_refused_priority_is_explained_by_the_limit_or_else_by_the_sandbox(
    limit: int, is_exempt: bool, remedy: str
) -> None:
    assert remedy in refusal(10, limit, is_exempt, _NOT_PERMITTED)


def test_a_refused_priority_is_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*arguments: object) -> None:
        raise _NOT_PERMITTED

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(real_time_priority, "has_capability", lambda number: number == SYS_NICE)

    assert request_priority(10) is False

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the engine serves with normal priority: SCHED_FIFO was refused (Operation not permitted)" in record.message


def test_the_threads_that_ask_for_the_serving_thread_have_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[int] = []
    ended = threading.Event()
    threads = [threading.Thread(target=ended.wait, name=name) for name in ("of the policy", f"{SERVICE_THREADS}send-0")]
    for thread in threads:
        thread.start()
    monkeypatch.setattr(os, "sched_setscheduler", lambda thread, policy, parameters: changed.append(thread))

    assert request_priority(10) is True
    ended.set()

    of_the_policy, sender = (thread.native_id for thread in threads)
    assert sender in changed and of_the_policy not in changed
    for thread in threads:
        thread.join()
