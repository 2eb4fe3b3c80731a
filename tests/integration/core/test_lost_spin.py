"""A spin in a process that another program interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.native import NATIVE

SPINNER = """
import sys, time
import numpy as np
from shmserve._core import CounterPoller, spin_unless_blocked
line = np.memmap(sys.argv[1], np.uint64, "r+")
began_ns = time.monotonic_ns()
line[1] = 1
took_ns = spin_unless_blocked([CounterPoller(line.view(np.uint8), 0)], 1 << 62)
print(took_ns, time.monotonic_ns() - began_ns)
"""


@pytest.mark.skipif(not NATIVE, reason="installed without a compiler")
def test_time_that_the_spinning_thread_did_not_have_does_not_count(tmp_path: Path) -> None:
    # The budget learns from this: a peer is not slow because another program had this processor.
    line = np.memmap(tmp_path / "line", np.uint64, "w+", shape=8)
    with subprocess.Popen([sys.executable, "-c", SPINNER, str(line.filename)], stdout=subprocess.PIPE) as spinner:
        while not line[1]:
            time.sleep(0.01)
        time.sleep(0.1)  # it spins by now, and if not, it has not lost what follows
        os.kill(spinner.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, spinner.pid, os.WSTOPPED)
        stopped_ns = time.monotonic_ns()
        line[0] = 64
        time.sleep(0.5)
        stopped_ns = time.monotonic_ns() - stopped_ns
        os.kill(spinner.pid, signal.SIGCONT)
        said, _ = spinner.communicate(timeout=60)

    took_ns, all_ns = map(int, said.split())
    assert 0 < took_ns <= all_ns - stopped_ns
