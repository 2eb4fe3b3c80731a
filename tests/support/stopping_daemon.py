"""A daemon that stops at every armed step, so that a test can look at it, or harm it, at exactly that one."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import final

from tests.support.daemon_process import Daemon


@final
class Stops:
    """In a block: lets the daemon go on from every step at once, and after what `at` was given from that one step."""

    def __init__(self, daemon: Daemon, steps: Sequence[str]) -> None:
        """Arms the steps; the daemon is not started yet."""
        daemon.environment["SHMSERVE_FAILPOINTS"] = ",".join(f"{step}=stop" for step in steps)
        self._daemon = daemon
        self._awaited: tuple[str, Callable[[], object]] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Stops:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def at(self, step: str, act: Callable[[], object]) -> None:
        """Do this once, the next time that the daemon has stopped at `step`."""
        self._awaited = (step, act)

    @property
    def acted(self) -> bool:
        return self._awaited is None

    def _run(self) -> None:
        while not self._over.is_set():
            if not (self._daemon.spawned and self._stopped()):
                time.sleep(0.002)
                continue
            text = (self._daemon.folder / "log").read_text("utf-8", "replace")
            step = re.findall(r"failpoint (\S+) reached", text)[-1]
            if self._awaited is not None and self._awaited[0] == step:
                self._awaited[1]()
                self._awaited = None
            self._daemon.signal(signal.SIGCONT)

    def _stopped(self) -> bool:
        """Whether it has stopped since this was asked last: the kernel tells of each time once."""
        try:
            return os.waitid(os.P_PID, self._daemon.pid, os.WSTOPPED | os.WNOHANG) is not None
        except ChildProcessError:  # it has ended
            return False
