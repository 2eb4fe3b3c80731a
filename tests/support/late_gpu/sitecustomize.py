"""Gives engines late GPUs (tests/gpu/late_cuda.py): on the path of a daemon that a test starts.

In a rehearsal of `make test-gpu bench-gpu` also other programs: those that LATE_CUDA_IN names.
"""

import json
import os
import sys
from pathlib import Path

_PROGRAMS = {"shmserve.daemon.engine.main", *os.environ.get("LATE_CUDA_IN", "").split()}

if not _PROGRAMS.isdisjoint(sys.orig_argv):
    path = sys.path[:]
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tests.gpu.late_cuda import install

    install(**json.loads(os.environ["LATE_CUDA"]))

    # An engine must not be able to import what only tests can.
    sys.path[:] = path
    if "shmserve.daemon.engine.main" in sys.orig_argv:
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
