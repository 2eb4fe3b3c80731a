"""The small file systems of tests that fill one up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.tiny_disk import mounts, tiny_disk

_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.support.tiny_disk import tiny_disk
with tiny_disk(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_test_unmounts_the_disk_of_a_killed_one(tmp_path: Path) -> None:
    left, mine = tmp_path / "left", tmp_path / "mine"
    left.mkdir()
    mine.mkdir()
    with tiny_disk(mine):
        killed = subprocess.run([sys.executable, "-c", _KILLED, str(left)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert {path for _, path in mounts()} >= {left, mine}
        assert os.statvfs(left).f_blocks * os.statvfs(left).f_frsize == 4 << 20

    with tiny_disk(mine):
        assert left not in {path for _, path in mounts()}
    assert not {left, mine} & {path for _, path in mounts()}
