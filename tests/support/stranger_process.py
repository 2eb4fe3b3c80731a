"""A process of another user: one of the programs in tests/support/strangers, which becomes that user once it has begun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import final

import pytest

from tests.support import watchdog
from tests.support.daemon_process import Daemon, environment
from tests.support.folders import REPOSITORY

#: A user that no machine has, in no group that one has.
UID = 61_234
_END_LIMIT_S = 80.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root: run the tests as root")


def become(uid: int = UID, groups: Sequence[int] = ()) -> None:
    """Give up root for good, with every group but these. What is to be imported was imported before: the new user may not."""
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def let_in(daemon: Daemon) -> None:
    """Let other users reach the daemon's sockets, which are in a private temporary directory."""
    for folder in (daemon.folder, daemon.runtime_dir):
        folder.chmod(0o711)


@final
class Stranger:
    """Runs `program ARGUMENT...` from tests/support/strangers; what it prints is kept, and it is gone after `finish`."""

    def __init__(self, program: str, *arguments: object, fds: tuple[int, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"tests.support.strangers.{program}", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY,
            env=environment(),
            pass_fds=fds,
            start_new_session=True,
        )
        watchdog.watch(self.process)

    def says(self) -> str:
        """The next line that it prints; AssertionError if it ends without."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the stranger ended with {self.process.wait()}"
        return line.rstrip("\n")

    def finish(self) -> str:
        """All that it has yet to print, once it has ended with 0."""
        output, _ = self.process.communicate(timeout=_END_LIMIT_S)
        assert self.process.returncode == 0, output
        return output

    def dismiss(self) -> None:
        """Kill it unless it has ended. May be called twice."""
        watchdog.reap(self.process)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *error: object) -> None:
        self.dismiss()
