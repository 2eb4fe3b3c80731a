"""The substitutes for packages that a bare machine with a GPU lacks have what shmserved uses of them."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.folders import REPOSITORY

_FOLDER = REPOSITORY / "tests/support/without_packages"


def test_the_daemon_s_command_runs_with_the_substitutes() -> None:
    path = os.pathsep.join([str(_FOLDER / "for_click"), str(_FOLDER / "for_posix_ipc"), str(REPOSITORY)])

    done = subprocess.run(
        [sys.executable, "-m", "shmserve.daemon.main", "--name", "arm", "--device", "cuda:0", "--check-config"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "cuda:0" in done.stdout
