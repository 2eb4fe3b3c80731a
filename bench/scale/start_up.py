"""Start-up times of the import, of attaching and of a status: `python -m bench.scale.start_up`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.peers.leftovers import my_prefix
from bench.peers.shmserve_peer import POLICY
from bench.service import ADMIN, Service, environment

from .figure import Figure, main

TITLE = "Starting"
IMPORT = """
import time
began = time.perf_counter()
import numpy
with_numpy = time.perf_counter()
import shmserve.client
print(with_numpy - began, time.perf_counter() - with_numpy)
"""
ATTACH = """
import sys, time
from pathlib import Path
from shmserve.client import ShmClient
from shmserve.directories import CLIENT_SOCKET
from shmserve.varlink_connection import VarlinkConnection
began = time.perf_counter()
with VarlinkConnection.connect(Path(sys.argv[1]) / "default" / CLIENT_SOCKET, 5.0) as connection:
    connection.call("io.shmserve.Client.Describe", {}, timeout_s=5.0)
called = time.perf_counter()
client = ShmClient(runtime_dir=sys.argv[1]).connect()
attached = time.perf_counter()
client.infer({"step": 1})
print(called - began, attached - called, time.perf_counter() - attached)
client.close()
"""
TIMEOUT_S = 60.0


def measure(seconds: float) -> list[Figure]:
    """Measure new interpreters, which find compiled modules as in an installed package."""
    rounds = max(3, round(5 * seconds))
    with tempfile.TemporaryDirectory(prefix=my_prefix()) as compiled, Service(POLICY) as service:
        modules = environment() | {"PYTHONPYCACHEPREFIX": compiled}
        modules.pop("PYTHONDONTWRITEBYTECODE", None)
        where = str(service.runtime_dir)
        status = [*shmserve_admin(), "--runtime-dir", where, "status"]
        ways = {
            "import": [sys.executable, "-c", IMPORT],
            "attach": [sys.executable, "-c", ATTACH, where],
            "status": status,
            "bare": [sys.executable, "-c", "pass"],
        }
        took: dict[str, list[list[float]]] = {name: [] for name in ways}
        for round_ in range(rounds + 1):
            for name, command in ways.items():
                times = _run(command, modules)
                if round_:  # The first one compiles.
                    took[name].append(times)

    def median_ms(name: str, column: int) -> float:
        return 1e3 * float(np.median([times[column] for times in took[name]]))

    return [
        Figure(
            "import_ms", "import shmserve.client, after numpy", median_ms("import", 2), "ms",
            median_ms("import", 1), "import numpy",
        ),
        Figure(
            "attach_ms", "attach", median_ms("attach", 2), "ms", median_ms("attach", 1), "connect and one call",
        ),
        Figure("first_ms", "the first request, with a client that is attached", median_ms("attach", 3), "ms"),
        Figure(
            "status_ms", "shmserve-admin status", median_ms("status", 0), "ms", median_ms("bare", 0), "python -c pass",
        ),
    ]  # fmt: skip


def _run(command: Sequence[str], modules: dict[str, str]) -> list[float]:
    """Return the seconds of the whole process, and its output."""
    began = time.perf_counter()
    done = subprocess.run(command, env=modules, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True)
    whole = time.perf_counter() - began
    try:
        return [whole, *map(float, done.stdout.split())]
    except ValueError:
        return [whole]


def shmserve_admin() -> list[str]:
    """Return the installed command, for which an operator waits."""
    beside = Path(sys.executable).with_name("shmserve-admin")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("shmserve-admin")
    return [found] if found else ADMIN


if __name__ == "__main__":
    main(TITLE, measure)
