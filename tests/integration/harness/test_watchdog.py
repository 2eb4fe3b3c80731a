"""Whatever ends the tests, the processes that they started end, too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from shmserve.daemon.clients.shm_names import NameRegistry
from tests.support import watchdog
from tests.support.daemon_process import is_running, wait_until
from tests.support.folders import REPOSITORY

_STARTS_A_DAEMON = """
import time
from tests.support.daemon_process import Daemon
daemon = Daemon("echo", arguments=("--transport", "named"))
daemon.start()
print(daemon.pid, daemon.engine_pid, daemon.folder, flush=True)
time.sleep(600)
"""


def left_in_shm(names: NameRegistry) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.removeprefix("sem.").startswith(names.prefix)]


def test_a_daemon_ends_when_the_tests_are_killed_and_leaves_no_name() -> None:
    tests = subprocess.Popen(
        watchdog.ending_with_us([sys.executable, "-c", _STARTS_A_DAEMON]),
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    watchdog.watch(tests)
    assert tests.stdout is not None
    with tests.stdout:
        pid, engine, folder = tests.stdout.readline().split()
    names = NameRegistry(Path(folder) / "r" / "t")
    try:
        assert left_in_shm(names)

        tests.kill()
        tests.wait()

        wait_until("the daemon has ended", lambda: not is_running(int(pid)))
        wait_until("its engine has ended", lambda: not is_running(int(engine)))
        assert left_in_shm(names) == []
    finally:
        watchdog.reap(tests)
        names.sweep()
        shutil.rmtree(folder)
