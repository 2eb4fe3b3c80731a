"""Temporary daemon for a candidate model; the serving daemon is not touched."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import final

from shmserve.errors import ModelPackageError, ServiceUnavailable

from .connection import AdminConnection
from .private_folder import PrivateFolder
from .wait_ready import wait_until_ready

_PR_SET_PDEATHSIG = 1
_STOP_LIMIT_S = 30.0
_LOG_LINES = 15


@final
class CandidateService:
    """Context manager: starts the daemon, waits until the model serves, and removes both at its end."""

    name = "candidate"

    def __init__(self, model: Path, device: str | None, timeout_s: float) -> None:
        self._model = model
        self._device = device
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._private = PrivateFolder("shmserve-replay-")

    @property
    def folder(self) -> Path:
        """The private folder; only inside the block."""
        assert self._private.path is not None
        return self._private.path

    @property
    def runtime_dir(self) -> Path:
        return self.folder / "run"

    def __enter__(self) -> CandidateService:
        self._private.__enter__()
        try:
            self._start()
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        package = self._model.absolute()
        if not package.is_dir():
            package = _unpack(package, self.folder / "package")
        command = [sys.executable, "-m", "shmserve.daemon.main", "--name", self.name]
        command += ["--model-path", str(package), "--transport", "sealed"]
        command += ["--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.folder / "state")]
        command += ["--device", self._device] if self._device else []
        # Only the settings above, none of this host's service.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SHMSERVE_")}
        environment["SHMSERVE_CONFIG"] = os.devnull
        libc = ctypes.CDLL(None)
        with open(self.folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                pass_fds=(self._private.descriptor,),
                env={**environment, "PYTHONSAFEPATH": "1"},
                # A replay that is killed leaves no daemon behind. This process has one thread.
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
            )

    def _wait(self) -> None:
        assert self._process is not None
        found = None
        for _ in range(max(1, int(self._timeout_s))):
            with contextlib.suppress(ServiceUnavailable):  # the daemon reads the package first, or has failed
                found = wait_until_ready(lambda: AdminConnection(self.name, self.runtime_dir), 1.0)
            if self._process.poll() is not None:
                raise ModelPackageError(f"the model at {self._model} cannot be served:\n{self._log_tail()}")
            if found is not None and found["state"] in ("ready", "failed"):
                break
        if found is None or found["state"] != "ready":
            raise ModelPackageError(
                f"the model at {self._model} is not ready after {self._timeout_s:g} s (--load-timeout):\n{self._log_tail()}"
            )

    def _log_tail(self) -> str:
        lines = (self.folder / "log").read_text("utf-8", "replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])

    def close(self) -> None:
        """May be called twice."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._private.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unpack(tar: Path, folder: Path) -> Path:
    """Unpack in a limited process, as a daemon does; return the package's directory, below the new `folder`; raises ModelPackageError, or OSError."""
    folder.mkdir(mode=0o700)
    with open(tar, "rb") as source:
        target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "shmserve.daemon.store.ingest_worker", str(source.fileno()), str(target)],
                pass_fds=(source.fileno(), target),
                input=b'{"limits": {}, "kept": []}',
                stdout=subprocess.PIPE,
                check=False,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                cwd="/",  # before Python 3.11 the working directory leads sys.path
            )
        finally:
            os.close(target)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    last = events[-1] if events else {}
    if last.get("event") != "done":
        reason = last.get("reason", f"the process that reads it ended with status {done.returncode}")
        raise ModelPackageError(f"model package {tar}: {reason}")
    return folder / str(last["root"])
