"""A real daemon with directories of its own, started and ended by a test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shmserve.client import ShmClient
from shmserve.daemon.clients.shm_names import NameRegistry
from shmserve.directories import ADMIN_SOCKET, CLIENT_SOCKET
from shmserve.varlink_connection import VarlinkConnection
from tests.support import watchdog
from tests.support.folders import SUPPORT

if TYPE_CHECKING:
    from typing_extensions import Self

POLICIES = SUPPORT / "policies"
SHMSERVED = Path(sys.executable).parent / "shmserved"
_SETTLED = ("ready", "failed")
#: A loaded machine imports torch slowly; what takes longer is stuck.
_START_LIMIT_S = 60.0
#: A program that starts a daemon which cannot lower priorities: on a machine that is busy with tests, a process with a low
#: priority would not start in time.
NORMAL_PRIORITY = (
    ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice"]
    if shutil.which("setpriv") and not os.geteuid()
    else []
)
_END_LIMIT_S = 30.0
#: Between two looks at a condition: a daemon that is asked for its status all the time has no time for anything else.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.1
#: What Python and asyncio say of an error that nobody handled.
_UNHANDLED = ("never retrieved", "Exception in callback", "Exception ignored", "ResourceWarning", "Fatal Python error")


def environment() -> dict[str, str]:
    """This process's environment without what would lead a daemon or a client to other directories."""
    away = ("SHMSERVE_", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "RUNTIME_DIRECTORY", "STATE_DIRECTORY", "JOURNAL_STREAM")
    kept = ("SHMSERVE_PURE",)
    return {key: value for key, value in os.environ.items() if key in kept or not key.startswith(away)}


def wait_until(what: str, condition: Any, limit_s: float = _END_LIMIT_S) -> Any:
    """What `condition()` returns once that is true; AssertionError after `limit_s`."""
    until = time.monotonic() + limit_s
    pause_s = _FIRST_PAUSE_S
    while not (found := condition()):
        assert time.monotonic() < until, f"not within {limit_s:g} s: {what}"
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
    return found


def wait_stopped(pid: int) -> None:
    """Return once the process is stopped, as by a failpoint with `stop`."""
    stat = Path(f"/proc/{pid}/stat")
    wait_until(f"process {pid} is stopped", lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")


def is_running(pid: int) -> bool:
    """Whether the process exists and has not ended (an unreaped one has)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def hurry(pid: int) -> None:
    """Give a process in the background as much of the processors as the others of its session have.

    Where the kernel schedules by sessions, a low priority leaves it a hundredth of a machine that is busy with tests.
    """
    with contextlib.suppress(OSError):  # it has ended, or this kernel schedules by processes
        Path(f"/proc/{pid}/autogroup").write_text("0")


class Daemon:
    """`start` it, perhaps more than once; `dismiss` stops it and asserts that nothing of it is left. `with` does both."""

    def __init__(
        self,
        policy: str | Path,
        *,
        name: str = "t",
        config: str = "",
        arguments: tuple[str, ...] = (),
        spare: bool | None = False,
    ) -> None:
        """`spare`: it keeps a spare engine, for tests that start further engines, and costs two seconds of
        processor time; None: what the settings say.
        """
        # Not pytest's tmp_path: the path of a Unix socket has room for 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="shmserve-"))
        self.name = name
        #: What it is started with; None: the version that it served last.
        self.package: Path | None = POLICIES / policy
        #: The variable that sets this.
        self.spare = {} if spare is None else {"SHMSERVE_SPARE_ENGINE": str(spare).lower()}
        #: What its environment has beside this process's own.
        self.environment: dict[str, str] = {}
        #: What a shell does to its standard streams, as in "2>&-"; the test may read the log no more.
        self.redirections = ""
        #: A program that starts it with less than this process has, and its arguments, as in ["prlimit", "--memlock=0"].
        self.starter: list[str] = [*NORMAL_PRIORITY] if spare else []
        self.runtime_dir = self.folder / "r"
        self.state_dir = self.folder / "s"
        self.service_dir = self.runtime_dir / name
        self._arguments = [*arguments]
        #: Every test of the service is a test of either transport: run them with this set to "sealed", too.
        if (transport := os.environ.get("SHMSERVE_TEST_TRANSPORT")) and "--transport" not in arguments:
            self._arguments += ["--transport", transport]
        #: And on any device: "late" is the one of tests/gpu/late_cuda.py.
        if (device := os.environ.get("SHMSERVE_TEST_DEVICE")) and "--device" not in arguments:
            self._arguments += ["--device", "cuda:0" if device == "late" else device]
            if device == "late":
                self.use_late_cuda()
        if config:
            (self.folder / "config.toml").write_text(config)
            self._arguments += ["--config", str(self.folder / "config.toml")]
        self._process: subprocess.Popen[bytes] | None = None
        self._engines: set[int] = set()
        self._clients: list[ShmClient] = []
        #: Errors that the test provokes and Python reports in the log as unhandled.
        self.expected_in_log: set[str] = set()

    # Life

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for anything."""
        # On a bare machine nothing is installed (tests/gpu/on_gpu.py).
        command = [str(SHMSERVED)] if SHMSERVED.exists() else [sys.executable, "-m", "shmserve.daemon.main"]
        command += ["--name", self.name]
        command += ["--model-path", str(self.package)] if self.package is not None else []
        command += ["--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir), *self._arguments]
        command = [*self.starter, *command]
        if self.redirections:
            command = ["sh", "-c", f'exec "$0" "$@" {self.redirections}', *command]
        with open(self.folder / "log", "ab") as log:
            process = subprocess.Popen(
                # Asked, not killed: its names in /dev/shm go with it.
                watchdog.ending_with_us(command, signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment(), **self.spare, **self.environment},
                cwd=self.folder,
                start_new_session=True,
            )
        watchdog.watch(process)
        self._process = process
        return process

    def start(self) -> Daemon:
        """Start it and wait until it serves."""
        self.spawn()
        return self.wait_ready()

    def wait_ready(self) -> Daemon:
        """Until it serves (again); AssertionError with its log if it ends or fails instead."""
        until = time.monotonic() + _START_LIMIT_S
        while True:
            assert self._process is not None and self._process.poll() is None, f"the daemon ended:\n{self.log}"
            assert time.monotonic() < until, f"the daemon is not ready:\n{self.log}"
            with contextlib.suppress(FileNotFoundError, ConnectionError):
                state = self.admin("WaitReady", {"timeout_s": 10.0})["state"]
                if state in _SETTLED:
                    break
            time.sleep(0.02)
        assert state == "ready", self.log
        self._engines.add(self.engine_pid)
        return self

    def stop(self) -> None:
        """SIGTERM; asserts that it exits with 0 in time."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self.wait_end() == 0, self.log

    def wait_end(self) -> int:
        """Its exit status, once it has ended (negative: the signal)."""
        assert self._process is not None
        try:
            return self._process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon does not end:\n{self.log}") from None

    @property
    def spawned(self) -> bool:
        """Whether there is a process; it may have ended."""
        return self._process is not None

    def signal(self, number: int) -> None:
        """Send the supervisor a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill9(self) -> None:
        """SIGKILL to the supervisor alone, and wait for its end."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(_END_LIMIT_S)

    def run_to_end(self) -> int:
        """Start a daemon that is expected to give up by itself; its exit status."""
        self.spawn()
        return self.wait_end()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.dismiss()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dismiss()

    def dismiss(self) -> None:
        """End it and assert that nothing of it is left: no name, no process, no socket, no unhandled error."""
        try:
            for client in self._clients:
                client.close()
            if self._process is None:
                return
            orderly = self._process.poll() is None
            if orderly:
                self.stop()
            orderly = orderly or self._process.returncode >= 0
            for pid in self._engines:
                wait_until(f"engine {pid} is gone", lambda pid=pid: not is_running(pid))
            if orderly:
                assert not self.names_in_shm(), f"left in /dev/shm: {self.names_in_shm()}"
                left = {entry.name for entry in self.service_dir.iterdir()} if self.service_dir.exists() else set()
                assert left <= {"lock"}, f"left in {self.service_dir}: {left}"
            found = [line for line in self.log.splitlines() for word in _UNHANDLED if word in line]
            assert {line for line in found if not any(word in line for word in self.expected_in_log)} == set(), self.log
        finally:
            if self._process is not None:
                watchdog.reap(self._process)
            NameRegistry(self.service_dir).sweep()
            shutil.rmtree(self.folder, ignore_errors=True)

    def use_late_cuda(self, **settings: Any) -> None:
        """Engines get late GPUs with these settings (tests/gpu/late_cuda.py)."""
        path = [str(Path(__file__).parent / "late_gpu"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment["PYTHONPATH"] = os.pathsep.join(path)
        self.environment["LATE_CUDA"] = json.dumps(settings)

    # Use

    def client(self, **settings: Any) -> ShmClient:
        """A client of it, closed by `dismiss` at the latest."""
        client = ShmClient(self.name, **{"runtime_dir": self.runtime_dir, "timeout": 60.0, **settings})
        self._clients.append(client)
        return client

    def forget_clients(self) -> None:
        """Close those that were made until now: a test that makes thousands must not keep them all."""
        while self._clients:
            self._clients.pop().close()

    def admin(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer of one method of the admin interface."""
        with VarlinkConnection.connect(self.service_dir / ADMIN_SOCKET, 5.0) as connection:
            return connection.call(f"io.shmserve.Admin.{method}", parameters, timeout_s=30.0).parameters

    def status(self) -> dict[str, Any]:
        """As `shmserve-admin status --json` prints it."""
        found = self.admin("Status")["status"]
        assert isinstance(found, dict)
        return found

    def wait_counted(self, **wanted: int) -> dict[str, Any]:
        """All counters of requests, once these stand at these numbers: the engine counts what it has answered."""

        def requests() -> dict[str, Any] | None:
            found: dict[str, Any] = self.status()["requests"]
            return found if wanted.items() <= found.items() else None

        found: dict[str, Any] = wait_until(f"the counters are {wanted}", requests)
        return found

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def engine_pid(self) -> int:
        pid = wait_until("there is an engine", lambda: self.status()["engine"])["pid"]
        assert isinstance(pid, int)
        self._engines.add(pid)
        return pid

    def wait_spare(self, state: str = "ready") -> dict[str, Any]:
        """The status of the spare engine, once it is in this state."""

        seen: dict[str, Any] = {}

        def reached() -> dict[str, Any] | None:
            status = self.status()
            seen.update(state=status["state"], engine=status["engine"])
            engine = status["engine"]
            if engine is None:
                return None
            if state == "ready" and engine["spare"]["pid"] is not None:
                hurry(engine["spare"]["pid"])
            return engine["spare"] if engine["spare"]["state"] == state else None

        try:
            spare: dict[str, Any] = wait_until(f"the spare engine is {state}", reached, _START_LIMIT_S)
        except AssertionError as late:
            raise AssertionError(f"{late}; the service's last status: {seen}") from None
        if spare["pid"] is not None:
            self._engines.add(spare["pid"])
        return spare

    @property
    def client_socket(self) -> Path:
        return self.service_dir / CLIENT_SOCKET

    @property
    def admin_socket(self) -> Path:
        return self.service_dir / ADMIN_SOCKET

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        return (self.folder / "log").read_text("utf-8", "replace")

    def names_in_shm(self) -> list[str]:
        """The objects in /dev/shm that are this service's."""
        prefix = NameRegistry(self.service_dir).prefix
        return sorted(name for name in os.listdir("/dev/shm") if name.removeprefix("sem.").startswith(prefix))
