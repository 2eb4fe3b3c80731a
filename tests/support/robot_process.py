"""A robot in a process of its own: one of the programs in tests/support/robots, and what it has to say."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Any

from tests.support import watchdog
from tests.support.daemon_process import Daemon, environment
from tests.support.folders import SUPPORT

ROBOTS = SUPPORT / "robots"
_END_LIMIT_S = 80.0


class Robot:
    """Runs `program NAME RUNTIME_DIR ARGUMENT...`; each line that it prints is one JSON value."""

    def __init__(self, program: str, daemon: Daemon, *arguments: object) -> None:
        # A file, because nobody reads a pipe while the test does something else.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed by dismiss
        self.process = subprocess.Popen(
            watchdog.ending_with_us(
                [
                    sys.executable,
                    str(ROBOTS / f"{program}.py"),
                    daemon.name,
                    str(daemon.runtime_dir),
                    *map(str, arguments),
                ]
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            start_new_session=True,
        )
        watchdog.watch(self.process)

    def says(self) -> Any:
        """The next value it prints; AssertionError if it ends without."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the robot ended:\n{self.errors}"
        return json.loads(line)

    def finish(self, number: int | None = None) -> Any:
        """The last value it prints, once it has ended with 0; with a signal to tell it to."""
        if number is not None:
            self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=_END_LIMIT_S)
        assert self.process.returncode == 0, self.errors
        return json.loads(output.splitlines()[-1])

    @property
    def errors(self) -> str:
        """What it wrote to standard error."""
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace")

    def dismiss(self) -> None:
        """Kill it unless it has ended."""
        watchdog.reap(self.process)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()
