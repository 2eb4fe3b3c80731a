"""A segment in a /dev/shm that is full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

_FULL = """
import errno, os
from shmserve.layout import Geometry
from shmserve.segment import Identity, create_segment
try:
    create_segment("/full", Geometry(1, 4096, 8 << 20), Identity(1, 0, 1))
except OSError as error:
    print(errno.errorcode[error.errno], os.listdir("/dev/shm"))
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="a small /dev/shm of one's own takes root and unshare"
)
def test_a_full_dev_shm_is_an_error_with_nothing_left_behind() -> None:
    found = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" -c "$1"',
            sys.executable,
            _FULL,
        ],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )

    assert found.stdout.strip() == "ENOSPC []", found.stderr
