"""The native core in a forked child."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.native import NATIVE

pytestmark = pytest.mark.skipif(not NATIVE, reason="installed without a compiler")


FORKING = """
import os, sys, threading
import numpy as np
from tests.support.native import core

words = np.zeros(4, np.uint64)
pollers = [core.CounterPoller(words.view(np.uint8), 0)]
looking = threading.Thread(target=lambda: core.spin(pollers, 1 << 62))
looking.start()
while sys.getrefcount(pollers[0]) < 3:  # the list's, the call's, and the look's
    pass
child = os.fork()
if not child:
    pollers[0].close()
    pollers[0].close()
    pollers.clear()
    print("closed twice", flush=True)
    os._exit(0)
status = os.waitpid(child, 0)[1]
words[0] = 1
looking.join()
sys.exit(status)
"""


def test_a_child_forked_while_a_thread_reads_may_close_the_object_in_use() -> None:
    # In a process of its own: this one has threads that a fork does not bear.
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "closed twice\n", "")
