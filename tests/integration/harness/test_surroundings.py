"""The tests run alike wherever they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.folders import REPOSITORY

_PROGRAM = """
import os, signal, tempfile
from hypothesis import settings
from tests.support import surroundings
surroundings.settle()
print(*sorted(set(os.environ) - {"LC_CTYPE"}))
print(tempfile.gettempdir(), oct(os.umask(0)), signal.getsignal(signal.SIGINT) is signal.SIG_IGN, settings().deadline)
"""
_ODD = {
    "COLUMNS": "3",
    "GIT_DIR": "/x",
    "LC_ALL": "C",
    "MAKEFLAGS": "-j",
    "PYTHONUNBUFFERED": "1",
    "SHMSERVE_NAME": "x",
}


def test_variables_a_long_temporary_folder_a_mode_and_an_ignored_interrupt_do_not_reach_them(tmp_path: Path) -> None:
    long = tmp_path / ("l" * 50)
    long.mkdir()
    kept = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
        "SHMSERVE_TEST_TRANSPORT": "sealed",
    }
    script = 'umask 077; trap "" INT; exec "$0" -c "$1"'

    ran = subprocess.run(
        ["sh", "-c", script, sys.executable, _PROGRAM],
        env={**kept, **_ODD, "TMPDIR": str(long)},
        capture_output=True,
        text=True,
        check=True,
    )

    names, rest = ran.stdout.splitlines()
    assert set(names.split()) - {"PWD", "SHLVL", "_"} == {*kept, "LANG", "TMPDIR"}
    assert rest == "/tmp 0o22 False None"
