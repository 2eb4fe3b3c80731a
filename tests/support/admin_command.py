"""The real shmserve-admin, and the same calls without the time that starting it takes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.client.cli.connection import AdminConnection
from shmserve.varlink import VarlinkError
from tests.support import watchdog
from tests.support.daemon_process import Daemon, environment

COMMAND = Path(sys.executable).parent / "shmserve-admin"
_LIMIT_S = 100.0


def start_admin(daemon: Daemon, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start the command; the caller waits for it (`end_admin`)."""
    process = subprocess.Popen(
        [str(COMMAND), "--name", daemon.name, "--runtime-dir", str(daemon.runtime_dir), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=cwd or daemon.folder,
        start_new_session=True,
    )
    watchdog.watch(process)
    return process


def end_admin(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """What it printed, and its exit status."""
    try:
        output, errors = process.communicate(timeout=_LIMIT_S)
    finally:
        watchdog.reap(process)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def admin(daemon: Daemon, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run shmserve-admin to its end."""
    return end_admin(start_admin(daemon, *arguments, cwd=cwd))


def admin_json(daemon: Daemon, *arguments: object) -> Any:
    """What `shmserve-admin --json` prints; it must succeed."""
    done = admin(daemon, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def changing(
    daemon: Daemon, method: str, parameters: dict[str, Any], fd: int = -1
) -> Iterator[Iterator[dict[str, Any]]]:
    """The replies of UpdateModel or Rollback as they come; leaving the block hangs up."""
    with AdminConnection(daemon.name, daemon.runtime_dir) as connection:
        yield connection.call_more(method, parameters, fd=fd)


def update(daemon: Daemon, package: Path, **options: Any) -> dict[str, Any]:
    """Update the model; returns the result, with its steps. Raises VarlinkError if it is refused."""
    fd = os.open(package, os.O_RDONLY)
    try:
        with changing(daemon, "UpdateModel", {"name": package.name, **options}, fd) as replies:
            return _result(replies)
    finally:
        os.close(fd)


def rollback(daemon: Daemon, version: str | None = None) -> dict[str, Any]:
    """Roll back; as `update`."""
    with changing(daemon, "Rollback", {"version": version}) as replies:
        return _result(replies)


def _result(replies: Iterator[dict[str, Any]]) -> dict[str, Any]:
    steps: list[str] = []
    for reply in replies:
        if reply["result"] is not None:
            result: dict[str, Any] = reply["result"]
            return {**result, "steps": steps}
        if reply["step"] not in steps[-1:]:
            steps.append(reply["step"])
    raise AssertionError(f"no result after {steps}")


@contextlib.contextmanager
def refused(reason: str, *said: str) -> Iterator[None]:
    """The block's update or rollback is refused for `reason`, and the message holds each of `said`."""
    with pytest.raises(VarlinkError) as raised:
        yield
    assert raised.value.error == "io.shmserve.Admin.Refused", raised.value
    assert raised.value.parameters["reason"] == reason, raised.value.parameters
    for text in said:
        assert text in raised.value.parameters["message"]


def engines_of(pid: int) -> list[int]:
    """The engine processes that the daemon with this pid has started and that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
                if b"shmserve.daemon.engine.main" in words and words[-1] == str(pid).encode():
                    found.append(int(entry.name))
    return found


def staged(daemon: Daemon) -> list[str]:
    """The packages on their way in or out of the daemon's store, or left there.

    Not the unfinished records: what an engine has served is written down at any moment.
    """
    kept = daemon.state_dir / daemon.name / "models" / "versions"
    return [path.name for path in kept.iterdir() if path.name.startswith(("incoming-", "removing-"))]


def served(daemon: Daemon) -> str:
    """The version that is served."""
    version = daemon.status()["model"]["version"]
    assert isinstance(version, str)
    return version
