"""Full /dev/shm and full disk, for services that have not begun.

Run these faults in a separate mount namespace: they mount small file systems.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chaos.service import Service, wait_served
from shmserve.package_files import content_version
from shmserve.varlink import VarlinkError
from tests.support.admin_command import served, staged, update

_SHM = Path("/dev/shm")
_SHM_MIB = 24
_DISK_MIB = 16
_PAGE = 4096
_VISITORS = 4
_WEIGHTS_BYTES = 1 << 20


def fill_shared_memory(service: Service, rounds: int) -> str:
    """Attach and resize on a full /dev/shm: a typed error, or by descriptor success; attached clients and engines continue."""
    _on_small(service, _SHM, _SHM_MIB)
    others = service.busy_robots(2)
    heard = 0
    for _ in range(rounds):
        ballast = _SHM / "ballast"
        _fill(ballast)
        try:
            heard += sum(service.visit() for _ in range(_VISITORS))
            wait_served(others, 10)
            os.kill(service.daemon.engine_pid, signal.SIGKILL)
            wait_served(others, 3)  # an engine needs no space there
        finally:
            ballast.unlink()
        assert not service.visit(), "there is room again, and a visitor was refused"
    assert heard == (rounds * _VISITORS if service.transport == "named" else 0)
    return f"{rounds} times /dev/shm without a byte: {heard} of {rounds * _VISITORS} visitors got a typed error, served afterwards"


def fill_disk(service: Service, rounds: int) -> str:
    """Fill the disk before or during an import, or while the engine starts: the old model serves until a new one is accepted."""
    disk = service.folder / "disk"
    disk.mkdir()
    service.daemon.state_dir = disk
    _on_small(service, disk, _DISK_MIB)
    robots = service.busy_robots(2)
    outcomes: Counter[str] = Counter()
    with ThreadPoolExecutor(1) as pool:
        for number in range(rounds):
            package = service.package(2 + number % 2, bytes_beside=_WEIGHTS_BYTES)
            before = served(service.daemon)
            ballast = disk / "ballast"
            if number % 3 == 0:
                _fill(ballast)
            changing = pool.submit(_taken, service, package)
            time.sleep(service.random.uniform(0, (0, 0.6, 3)[number % 3]))
            _fill(ballast)
            try:
                taken = changing.result()
                assert served(service.daemon) == (content_version(package) if taken else before)
            finally:
                ballast.unlink()
            assert staged(service.daemon) == []
            outcomes["taken" if taken else "refused"] += 1
            wait_served(robots, 5)
    before = served(service.daemon)
    service.daemon.kill9()
    service.daemon.package = None
    service.daemon.start()
    assert served(service.daemon) == before
    assert _taken(service, service.package(2, bytes_beside=_WEIGHTS_BYTES)), "there is room again"
    wait_served(robots, 5)
    return (
        f"{rounds} models arrived while the disk filled up: {outcomes['refused']} were refused and the old one served on, "
        f"{outcomes['taken']} taken; a killed supervisor's successor served the same, and the next model was taken"
    )


def _taken(service: Service, package: Path) -> bool:
    try:
        return bool(update(service.daemon, package)["changed"])
    except VarlinkError as error:
        assert error.parameters["reason"] == "store", error.parameters
        return False


def _on_small(service: Service, path: Path, mib: int) -> None:
    """Mount a file system of this size there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)], check=True)
    service.undo.callback(subprocess.run, ["umount", "--lazy", str(path)], check=True)
    service.begin({})


def _fill(ballast: Path) -> None:
    """Extend this file until no page is left."""
    with open(ballast, "ab", buffering=0) as file:
        for size in (1 << 20, _PAGE):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
