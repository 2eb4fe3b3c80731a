"""Private shmserved of a benchmark: it serves a package made from a policy's file, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shmserve.client import ShmClient
from shmserve.client.cli.connection import AdminConnection
from shmserve.errors import ServiceUnavailable

from .peers.leftovers import my_prefix
from .peers.peer import PR_SET_PDEATHSIG

if TYPE_CHECKING:
    from typing_extensions import Self

POLICIES = Path(__file__).with_name("policies")
SHMSERVED = [sys.executable, "-m", "shmserve.daemon.main"]
ADMIN = [sys.executable, "-m", "shmserve.client.cli.main"]
READY_TIMEOUT_S = 90
STOP_TIMEOUT_S = 20.0

_libc = ctypes.CDLL(None)


class Service:
    """Service with `start` and `stop`; also a context manager.

    `model` are keys of model.toml's [model], `settings` those of the daemon's configuration, `environment` are variables
    of the daemon.
    """

    def __init__(
        self,
        policy: Path,
        *,
        model: Mapping[str, int | str] | None = None,
        settings: Mapping[str, int | str | list[int]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._policy = policy
        self._model = dict(model or {})
        self._settings = dict(settings or {})
        self._environment = dict(environment or {})
        self._folder: Path | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        """Return the folder of all its files, while it is started."""
        assert self._folder is not None, "the service was not started"
        return self._folder

    @property
    def runtime_dir(self) -> Path:
        """Return the runtime directory for its clients."""
        return self.folder / "r"

    def start(self) -> None:
        """Start the daemon and return when it is ready, with its spare engine, whose start takes processor time.

        Raises ConnectionError with the daemon's log if it ends or fails.
        """
        # A short path: a Unix socket's name has 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix=my_prefix()))
        package = self.package("policy", self._policy)
        settings = self.folder / "config.toml"
        settings.write_text(toml(self._settings))
        command = [*SHMSERVED, "--model-path", str(package), "--config", str(settings)]
        command += ["--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.folder / "s")]
        with (self.folder / "log").open("wb") as log:
            self._daemon = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment(), **self._environment},
                preexec_fn=_end_with_parent,  # noqa: PLW1509  a benchmark has one thread
            )
        try:
            self._wait_ready()
            self._wait_spare()
        except BaseException:
            self.stop()
            raise

    def _wait_ready(self) -> None:
        assert self._daemon is not None
        until = time.monotonic() + READY_TIMEOUT_S
        state = "starting"
        while state not in ("ready", "failed"):
            if self._daemon.poll() is not None:
                raise ConnectionError(f"shmserved has ended\n{self.log}")
            if time.monotonic() > until:
                raise ConnectionError(f"shmserved is not ready within {READY_TIMEOUT_S} s\n{self.log}")
            with contextlib.suppress(ServiceUnavailable), AdminConnection("default", self.runtime_dir) as connection:
                state = connection.call("WaitReady", {"timeout_s": 1.0})["state"]
            time.sleep(0.01)
        if state == "failed":
            raise ConnectionError(f"shmserved has failed\n{self.log}")

    def _wait_spare(self) -> None:
        until = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < until:
            with AdminConnection("default", self.runtime_dir) as connection:
                engine = connection.call("Status")["status"]["engine"]
            if engine is not None and engine["spare"]["state"] not in ("waiting", "starting"):
                return
            time.sleep(0.2)
        raise ConnectionError(f"no spare engine within {READY_TIMEOUT_S} s\n{self.log}")

    def package(self, name: str, policy: Path, model: Mapping[str, int | str] | None = None) -> Path:
        """Make a model package of a policy's file, beside the first one."""
        package = self.folder / name
        package.mkdir()
        shutil.copy(policy, package / "policy.py")
        (package / "model.toml").write_text("[model]\n" + toml({"name": name, **self._model, **(model or {})}))
        return package

    def admin(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start shmserve-admin for this service."""
        command = [*ADMIN, "--runtime-dir", str(self.runtime_dir), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())

    def status(self) -> dict[str, Any]:
        """Return the output of `shmserve-admin status --json`."""
        said, error = self.admin("status", "--json").communicate()
        if not said:
            raise ConnectionError(f"no status: {error.decode().strip()}\n{self.log}")
        found: dict[str, Any] = json.loads(said)
        return found

    def client(self, **settings: Any) -> ShmClient:
        return ShmClient(runtime_dir=self.runtime_dir, **{"timeout": 60.0, **settings})

    def pids(self) -> list[int]:
        """Return the process id of the supervisor, whose children are the engines."""
        return [self._daemon.pid] if self._daemon is not None else []

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    def stop(self) -> None:
        """Stop the service; may be called twice."""
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def clients(service: Service, count: int) -> Iterator[list[ShmClient]]:
    """Attach clients that send no request."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(service.client()) for _ in range(count)]


def toml(table: Mapping[str, int | str] | Mapping[str, int | str | list[int]]) -> str:
    """Format the lines of a TOML table.

    >>> toml({"max_batch": 8, "read_in_place": True, "name": "x"}).splitlines()
    ['max_batch = 8', 'read_in_place = true', 'name = "x"']
    """
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


def environment() -> dict[str, str]:
    """Return this process's environment without variables that name other directories."""
    away = ("SHMSERVE_", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "RUNTIME_DIRECTORY", "STATE_DIRECTORY", "JOURNAL_STREAM")
    kept = ("SHMSERVE_PURE",)
    return {key: value for key, value in os.environ.items() if key in kept or not key.startswith(away)}


def _end_with_parent() -> None:
    # Between fork and exec, so only this call; a Ctrl-C on the terminal is for the benchmark.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.setsid()
