"""A robot's program as its user runs it: an example's script, or a program of the tests that imports nothing of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.support import watchdog
from tests.support.daemon_process import Daemon, environment


@contextmanager
def running(*command: object, daemon: Daemon | None = None) -> Iterator[subprocess.Popen[str]]:
    """The program, with its errors among its output; killed at the end of the block if it still runs then.

    It finds `daemon` by the environment.
    """
    where: Mapping[str, Any] = {"SHMSERVE_RUNTIME_DIR": str(daemon.runtime_dir)} if daemon is not None else {}
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**environment(), **where},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    watchdog.watch(process)
    try:
        yield process
    finally:
        watchdog.reap(process)
        assert process.stdout is not None
        process.stdout.close()


def output_of(*command: object, daemon: Daemon | None = None) -> str:
    """What the program prints; AssertionError if it does not end with 0."""
    with running(*command, daemon=daemon) as process:
        output, _ = process.communicate(timeout=80)
    assert process.returncode == 0, output
    return output
