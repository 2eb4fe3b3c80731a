"""The world around the service: its clock, its /dev/shm, its disk. Short forms of `make chaos`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from chaos.clocks import step_clock
from chaos.service import Service
from tests.support.daemon_process import environment
from tests.support.folders import REPOSITORY

_BOTH = ["named", "sealed"]

pytestmark = pytest.mark.long


@pytest.mark.fault("T23")
@pytest.mark.skipif(shutil.which("cc") is None, reason="another wall clock is compiled when needed")
@pytest.mark.parametrize("transport", _BOTH)
def test_steps_of_the_wall_clock_lose_and_delay_nothing(transport: str) -> None:
    with Service(transport, seed=1, begins=False) as service:
        print(step_clock(service, 3))

    print(service.account)


@pytest.mark.fault("T03", "T67", "T68")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting takes root and unshare")
@pytest.mark.parametrize("transport", _BOTH)
@pytest.mark.parametrize(("fault", "times"), [("full-memory", 1), ("full-disk", 2)])
def test_every_request_is_accounted_for_where_nothing_has_room(transport: str, fault: str, times: int) -> None:
    command = [sys.executable, "-m", "chaos.run", "--transport", transport, "--only", fault, f"--{fault}", str(times)]
    ran = subprocess.run(
        command,
        check=False,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=140,
        env=environment(),
    )
    print(ran.stdout)

    assert ran.returncode == 0, ran.stderr
    assert "wrong 0, untyped 0, after their deadline 0" in ran.stdout
    assert ran.stdout.endswith("every request accounted for, nothing left behind\n")
