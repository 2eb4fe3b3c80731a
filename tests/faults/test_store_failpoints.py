"""Failpoints do what the environment says, and nothing otherwise; and the examples in the store's modules hold."""

from __future__ import annotations

import doctest
import importlib
import os
import signal
import subprocess
import sys
from types import ModuleType

import pytest

from shmserve import package_files, package_signature
from shmserve.daemon import failpoints
from shmserve.daemon.store import package_writer

_SCRIPT = """
import sys, time
from shmserve.daemon.failpoints import failpoint
for step in sys.argv[1:]:
    began = time.monotonic()
    try:
        failpoint(step)
    except OSError as error:
        print(step, error.errno)
    else:
        print(step, "slept" if time.monotonic() - began >= 0.2 else "passed", flush=True)
"""


_ONE, _TWO, _THREE = "update.received", "update.warm", "update.swapped"


def _run(armed: str, *steps: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, failpoints.VARIABLE: armed}
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT, *steps], env=environment, capture_output=True, text=True, check=False
    )


def test_without_the_variable_nothing_happens() -> None:
    run = _run("", _ONE, _TWO)

    assert run.stdout == f"{_ONE} passed\n{_TWO} passed\n" and run.stderr == "" and run.returncode == 0


def test_a_step_kills() -> None:
    run = _run(f"{_TWO}=kill", _ONE, _TWO, _THREE)

    assert run.stdout == f"{_ONE} passed\n" and run.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("action", "status"), [("exit", 1), ("exit:0", 0), ("exit:77", 77)])
def test_a_step_exits(action: str, status: int) -> None:
    run = _run(f"{_TWO}={action}", _ONE, _TWO, _THREE)

    assert run.stdout == f"{_ONE} passed\n" and run.returncode == status


def test_a_step_stops_until_a_signal_continues_it() -> None:
    environment = {**os.environ, failpoints.VARIABLE: f"{_TWO}=stop"}
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT, _ONE, _TWO, _THREE], env=environment)
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)

        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP
        process.send_signal(signal.SIGCONT)
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()


def test_a_step_sleeps_and_another_raises() -> None:
    run = _run(f"{_ONE}=sleep:0.2,{_TWO}=raise:ENOSPC", _ONE, _TWO, _THREE)

    assert run.stdout == f"{_ONE} slept\n{_TWO} 28\n{_THREE} passed\n"


def test_a_step_acts_at_its_turn_only() -> None:
    run = _run(f"{_ONE}=raise:EIO@2", _ONE, _ONE, _ONE)

    assert run.stdout == f"{_ONE} passed\n{_ONE} 5\n{_ONE} passed\n"


@pytest.mark.parametrize(
    "armed",
    [
        *("x", "x=", "=kill", "x=stop:1", "x=die", "x=kill:9", "x=sleep", "x=sleep:soon", "x=raise", "x=raise:NOPE"),
        *("x=raise:errorcode", "x=kill@0", "x=kill@", "X Y=kill", "x=exit:one"),
    ],
)
def test_a_failpoint_that_is_misspelt_stops_the_daemon(armed: str) -> None:
    run = _run(armed, "x")

    assert run.returncode == 1 and "must be NAME=kill|stop|exit" in run.stderr


def test_armed_failpoints_are_logged() -> None:
    assert f"failpoints are armed: {_ONE}=kill" in _run(f"{_ONE}=kill", _TWO).stderr


def test_a_failpoint_that_does_not_exist_stops_the_daemon() -> None:
    run = _run("update.recieved=kill", _ONE)

    assert run.returncode == 1 and "unknown failpoint 'update.recieved'" in run.stderr


@pytest.mark.parametrize("name", ["update.new", "engine.0.loading", "engine.1.late", "store.record.before_lunch"])
def test_a_failpoint_that_is_missing_in_the_tables_cannot_be_reached(name: str) -> None:
    run = _run(f"{_ONE}=sleep:0", name)

    assert run.returncode == 1 and f"the failpoint '{name}' is missing in the tables" in run.stderr


@pytest.mark.parametrize("name", ["engine.1.loading", "engine.20.paused", "store.record.before_rename", "swap.paused"])
def test_every_kind_of_name_is_in_the_tables(name: str) -> None:
    assert _run(f"{name}=sleep:0", name).stdout == f"{name} passed\n"


@pytest.mark.parametrize(
    "module", [package_files, package_signature, package_writer], ids=lambda module: module.__name__
)
def test_the_examples_in_the_modules_hold(module: ModuleType) -> None:
    result = doctest.testmod(importlib.import_module(module.__name__))

    assert result.attempted > 0 and result.failed == 0
