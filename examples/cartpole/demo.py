"""The whole demo in one command: a daemon that serves the CartPole policy, a robot that asks it, a new model meanwhile.

Nothing is left of it afterwards but the plot.

Exit status: the robot's (0 balanced, 1 not), 1 if another part failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Where the console scripts of the interpreter that runs this file are.
COMMANDS = Path(sys.executable).parent
SERVICE = "cartpole-demo"
READY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
LOOK_S = 0.05
# So small a network gains nothing from a second thread, and on a busy machine the two wait for each other.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", **os.environ}
LOG_LINES = 30
#: Seconds of an episode that goes well.
EPISODE_S = 10

Process = subprocess.Popen[bytes]
Command = list[str | Path]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Those that asked the demo to end. Noted, and looked at while it waits, rather than raised wherever it happens to be:
# an exception between starting a child and remembering it would leave the child behind.
stop_signals: list[int] = []


class Stopped(Exception):
    """Somebody asked the demo to end."""


class DemoFailed(Exception):
    """A part of the demo could not do its work; the message says which."""


@contextlib.contextmanager
def child(what: str, command: Command, *, stop_with: signal.Signals, log: Path | None = None) -> Iterator[Process]:
    """A process that is gone when the block is left; it writes to `log`, or here.

    It has a session of its own: Ctrl-C at the terminal reaches the demo alone, which stops its children in order.
    """
    with contextlib.ExitStack() as files:
        output = files.enter_context(log.open("wb")) if log is not None else None
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise DemoFailed(f"{what}: no {error.filename}; pip install 'shmserve[examples]' puts it there") from None
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(stop_with)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"demo: {what} did not stop within {STOP_TIMEOUT_S} s and was killed", file=sys.stderr)


@contextlib.contextmanager
def daemon_child(serve: Command, ready: Command, private: Path) -> Iterator[Process]:
    """The daemon, and with it all that it has in /dev/shm, gone when the block is left."""
    with contextlib.ExitStack() as running:
        daemon = running.enter_context(child("daemon", serve, stop_with=signal.SIGTERM, log=private / "daemon.log"))
        try:
            yield daemon
        finally:
            running.close()
            if daemon.returncode < 0:
                # It was killed. What it left in /dev/shm goes when a daemon of the same service starts.
                with (
                    child("daemon", serve, stop_with=signal.SIGTERM, log=private / "sweep.log"),
                    child("wait-ready", ready, stop_with=signal.SIGTERM, log=private / "sweep-ready.log") as waiting,
                ):
                    waiting.wait()


def finish(process: Process, daemon: Process) -> int:
    """Wait for `process` and return its exit status; raises if the daemon ends first, or the demo is to end."""
    while (status := process.poll()) is None:
        if stop_signals:
            raise Stopped
        if daemon.poll() is not None:
            raise DemoFailed(f"the daemon ended by itself with status {daemon.returncode}")
        time.sleep(LOOK_S)
    return status


def wait(seconds: float, process: Process, daemon: Process) -> bool:
    """Let the time pass; False as soon as `process` has ended. Raises as `finish`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            return False
        if stop_signals:
            raise Stopped
        if daemon.poll() is not None:
            raise DemoFailed(f"the daemon ended by itself with status {daemon.returncode}")
        time.sleep(LOOK_S)
    return True


def replace_model(admin: Command, daemon: Process, private: Path) -> None:
    """Another version in the old one's place, while the robot drives."""
    package, log = private / "retrained", private / "update.log"
    shutil.copytree(HERE / "model", package)
    with (package / "model.toml").open("a") as manifest:
        manifest.write('\n[metadata]\ntrained = "again"\n')  # any change of a file is another version
    print("the robot drives; shmserve-admin update-model retrained", flush=True)
    with child("update", [*admin, "update-model", package], stop_with=signal.SIGTERM, log=log) as updating:
        status = finish(updating, daemon)
    print(log.read_text(errors="replace"), end="", flush=True)
    if status:
        raise DemoFailed(f"shmserve-admin update-model exited with status {status}")


def demonstrate(arguments: argparse.Namespace, private: Path) -> int:
    """Daemon, robot, a new model in the middle of an episode, status; the exit status of the robot."""
    runtime = private / "run"
    where: Command = ["--name", SERVICE, "--runtime-dir", runtime]
    serve: Command = [COMMANDS / "shmserved", *where, "--model-path", HERE / "model"]
    serve += ["--state-dir", private / "state", "--device", arguments.device]
    admin: Command = [COMMANDS / "shmserve-admin", *where]
    robot: Command = [sys.executable, HERE / "robot.py", *where]
    robot += ["--episodes", str(arguments.episodes), "--seed", str(arguments.seed), "--output", arguments.output]
    ready = [*admin, "wait-ready", "--timeout", str(READY_TIMEOUT_S)]

    with daemon_child(serve, ready, private) as daemon:
        with child("wait-ready", ready, stop_with=signal.SIGTERM) as waiting:
            if status := finish(waiting, daemon):
                raise DemoFailed(f"shmserve-admin wait-ready exited with status {status}: the daemon is not ready")
        print(f"daemon {daemon.pid} serves {SERVICE!r}; try: {' '.join(map(str, admin))} status", flush=True)
        with child("robot", robot, stop_with=signal.SIGINT) as driving:
            if wait(min(1.2, arguments.episodes / 2) * EPISODE_S, driving, daemon):
                replace_model(admin, daemon, private)
            outcome = finish(driving, daemon)
        if outcome < 0:
            raise DemoFailed(f"the robot was ended by {signal.Signals(-outcome).name}")
        with child("status", [*admin, "status"], stop_with=signal.SIGTERM) as showing:
            finish(showing, daemon)
    if daemon.returncode != 0:
        raise DemoFailed(f"the daemon was told to stop and exited with status {daemon.returncode}")
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where the policy runs: cpu, cuda:0 (default cpu)")
    parser.add_argument("--episodes", type=int, default=5, help="episodes to balance (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode (default 0)")
    parser.add_argument("--output", type=Path, default=Path("demo.png"), help="latency plot (default demo.png)")
    arguments = parser.parse_args()

    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: stop_signals.append(number))
    with tempfile.TemporaryDirectory(prefix="shmserve-demo-") as private:
        try:
            status = demonstrate(arguments, Path(private))
        except Stopped:
            status = 128 + stop_signals[0]
            print("demo: stopped, nothing left behind", file=sys.stderr)
        except DemoFailed as error:
            status = 1
            print(f"demo: {error}", file=sys.stderr)
            log = Path(private) / "daemon.log"
            if log.exists() and (lines := log.read_text(errors="replace").splitlines()[-LOG_LINES:]):
                print("the daemon's last words:", *lines, sep="\n  ", file=sys.stderr)
    # All is cleaned up: an impatient second Ctrl-C must not change the status while the interpreter ends.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


if __name__ == "__main__":
    main()
