"""Failures of the N-th call of a C library function, in the supervisor or in the engine, for each N up to the last call.

A shim between a process and its C library (failing_calls.c, compiled when needed) counts the calls.
"""

from __future__ import annotations

import errno
import mmap
import subprocess
from pathlib import Path

from chaos.service import Service, wait_served
from tests.support.daemon_process import wait_until

_SOURCE = Path(__file__).with_name("failing_calls.c")
#: Number in failing_calls.c, and the error number of the failure.
_SUPERVISORS = {
    "posix_fallocate": (1, errno.ENOSPC),
    "ftruncate": (2, errno.ENOSPC),
    "memfd_create": (3, errno.EMFILE),
    "shm_open": (4, errno.EMFILE),
    "pipe2": (5, errno.EMFILE),
    "pwrite": (6, errno.ENOSPC),
    "sem_open": (7, errno.ENOSPC),
    "fchmod": (9, errno.EPERM),
}
_ENGINES = {"shm_open": (4, errno.EMFILE), "sem_open": (7, errno.EMFILE), "mmap": (8, errno.ENOMEM)}


class _Words:
    """Words that the shim reads and counts in."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), 4096)
        self._words = memoryview(self._mapped).cast("Q")

    def arm(self, pid: int, function: int, nth: int, number: int) -> None:
        self._words[0] = 0
        for index, value in enumerate((function, nth, number, 0, 0), 1):
            self._words[index] = value
        self._words[0] = pid

    def disarm(self) -> bool:
        """Return whether the call was made, and failed."""
        self._words[0] = 0
        return self._words[5] > 0


def fail_calls(service: Service, most: int) -> str:
    """Let a client attach, resize, send requests and leave: it gets replies or a typed error, the others notice nothing."""
    shim = service.folder / "failing_calls.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, _SOURCE, "-ldl"], check=True)
    words = _Words(service.folder / "failing_calls")
    daemon = service.daemon
    daemon.stop()
    daemon.environment |= {"LD_PRELOAD": str(shim), "CHAOS_FAILING_CALLS": str(service.folder / "failing_calls")}
    daemon.start()
    others = service.busy_robots(2)
    supervisor = daemon.pid
    baseline = service.objects()
    failed: dict[str, int] = {}
    heard = 0
    for who, functions in (("supervisor", _SUPERVISORS), ("engine", _ENGINES)):
        for name, (function, number) in functions.items():
            for nth in range(1, most + 1):
                words.arm(daemon.pid if who == "supervisor" else daemon.engine_pid, function, nth, number)
                heard += service.visit()
                if not words.disarm():
                    break
                failed[f"{who}'s {name}"] = nth
                wait_served(others, 2)
                wait_until("the visitor's objects are gone", lambda: service.objects() <= baseline)
    assert daemon.pid == supervisor
    daemon.expected_in_log.add("never retrieved")
    calls = ", ".join(f"{name} {count}" for name, count in failed.items())
    return f"{sum(failed.values())} calls failed one after the other ({calls}); {heard} visitors got a typed error"
