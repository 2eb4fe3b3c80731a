"""A real Ray cluster on this machine, and the commands of an operator against it. For environments with the extra `ray`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon_process import SHMSERVED
from tests.support.folders import REPOSITORY

GRPC_PORT, HTTP_PORT = 19000, 18000
_START_S = 120.0


class Cluster:
    """The cluster at `address`; packages lie in `folder`."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        self.folder = folder

    def admin(self, *words: str) -> str:
        """Run `shmserve-admin remote`; return what it prints."""
        command = [str(SHMSERVED.with_name("shmserve-admin")), "remote", *words, "--cluster", self.address]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_START_S, check=False)
        assert ran.returncode == 0, ran.stderr[-3000:]
        return ran.stdout

    def deploy(self, package: Path, target: str, *, fallback: Path, budget_s: float) -> Path:
        """Deploy a package on two replicas; return its link package."""
        link = self.folder / f"{package.name}-link"
        words = ["--replicas", "2", "--cpus", "0.5", "--port", str(GRPC_PORT), "--http-port", str(HTTP_PORT)]
        words += ["--target", target, "--budget", str(budget_s), "--fallback", str(fallback), "--out", str(link)]
        print(self.admin("deploy", str(package), *words))
        return link


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster, and end it with the block."""
    temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray's sockets have long names below it
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ray_cluster", temporary],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=REPOSITORY,
    )
    assert process.stdin is not None and process.stdout is not None
    late = threading.Timer(_START_S, process.kill)
    late.start()
    address = process.stdout.readline().strip()
    late.cancel()
    try:
        assert address, "Ray did not start"
        yield Cluster(address, folder)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
        shutil.rmtree(temporary, ignore_errors=True)


def replica_pids(application: str) -> list[int]:
    """Return the processes of an application's replicas, which Ray names by it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            if command.startswith(f"ray::ServeReplica:{application}:".encode()):
                found.append(int(entry.name))
    return found
