"""A /dev/shm that is too small, as in a container: a clear error, and what fitted before still works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.support.daemon_process import environment
from tests.support.folders import SUPPORT

ROBOT = SUPPORT / "robots" / "small_shared_memory.py"


@pytest.mark.fault("T03", "T67")
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a small /dev/shm of one's own takes root and unshare"
)
def test_a_channel_that_does_not_fit_is_refused_with_the_numbers_and_the_old_one_stays() -> None:
    mount = 'mount -t tmpfs -o size=12m tmpfs /dev/shm && exec "$0" "$1"'

    found = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, sys.executable, str(ROBOT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(),
    )

    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout.splitlines()[-1])
    for refusal in (said.pop("grown"), said.pop("another")):
        assert "bytes of shared memory are needed and /dev/shm has" in refusal
        assert "enlarge it (docker run --shm-size)" in refusal
    assert said == {"small": 1, "names": True, "small again": 2, "fits": 7 << 20, "still": 3}
