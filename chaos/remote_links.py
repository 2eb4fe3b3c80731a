"""A robot at 50 Hz through lost links, killed replicas and changes of the version: `python -m chaos.remote_links --minutes 10`.

The replicas are real ones behind a bare gRPC server (tests/support/replica_server.py) on this machine, the link goes through a
relay that is cut or silenced, and each version is a link package of its own. The account at the end has every call of the robot.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from chaos.processor_watch import Pauses
from chaos.remote_account import Happened, account
from chaos.remote_robot import Call
from shmserve.client.cli.connection import AdminConnection
from shmserve.daemon.packages.package import ModelPackage
from tests.support.admin_command import update
from tests.support.daemon_process import Daemon
from tests.support.folders import REPOSITORY
from tests.support.relay import Relay
from tests.support.stand_in_uplink import link_package

_BUDGET_S = 0.08
_POLICY = """
import time

import numpy as np

class Policy:
    def __init__(self, path, device):
        pass

    def infer(self, observation):
        began_s = time.monotonic()
        action = np.asarray(observation["state"]) * GAIN
        return {"action": action, "ran": np.array([began_s, time.monotonic()])}

    def example_observation(self):
        return {"state": np.zeros(7, np.float32)}
"""
#: An action that names its time differs from run to run.
_MANIFEST = '[model]\nname = "arm"\narrays = "numpy"\nsampling = true\n'


class Version:
    """One version: its package, its replica, which may be killed, and its link."""

    def __init__(self, folder: Path, gain: int, port: int) -> None:
        self.gain = gain
        self._package = folder / f"package{gain}"
        self._package.mkdir()
        (self._package / "policy.py").write_text(_POLICY.replace("GAIN", str(gain)))
        (self._package / "model.toml").write_text(_MANIFEST)
        self.version = ModelPackage.read(self._package).version
        self.relay = Relay(folder / f"uplink{gain}.sock", port)
        local = _POLICY.replace("GAIN", "-1")
        keys: dict[str, Any] = {"budget_s": _BUDGET_S, "probe_s": 0.2}
        self.link = link_package(folder / f"link{gain}", self.relay.target, self.version, local=local, **keys)
        (self.link / "local" / "model.toml").write_text(_MANIFEST)
        self._port = port
        self._replica: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the replica, and return when it listens."""
        command = [sys.executable, "-m", "tests.support.replica_server", str(self._package), f"127.0.0.1:{self._port}"]
        self._replica = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert self._replica.stdout is not None
        self._replica.stdout.readline()

    def kill(self) -> None:
        """End the replica by SIGKILL."""
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.kill()
            replica.wait()
            assert replica.stdin is not None and replica.stdout is not None
            replica.stdin.close()
            replica.stdout.close()

    def close(self) -> None:
        self.relay.down()
        self.kill()


class Beside:
    """A process of this account, which ends with its standard input and leaves a file of JSON."""

    def __init__(self, module: str, out: Path, *arguments: str) -> None:
        self._out = out
        command = [sys.executable, "-m", module, *arguments, str(out)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=REPOSITORY)

    def end(self) -> Any:
        """End it, and return what it has found."""
        self.close()
        return json.loads(self._out.read_text())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def run(minutes: float, losses: int, kills: int, switches: int, seed: int) -> int:
    """Run, print the account, and return the exit status: 1 for a wrong action or a failed call."""
    chance = random.Random(seed)
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="shmserve-links-")))
        versions = [Version(folder, gain, 21000 + gain) for gain in range(2, 3 + switches)]
        for version in versions:
            cleanup.callback(version.close)
            version.start()
            version.relay.up()
        daemon = cleanup.enter_context(Daemon(versions[0].link))
        gains = json.dumps({version.version: version.gain for version in versions})
        arguments = (daemon.name, str(daemon.runtime_dir), gains)
        robot = Beside("chaos.remote_robot", folder / "robot.json", *arguments)
        cleanup.callback(robot.close)
        watch = Beside("chaos.processor_watch", folder / "watch.json", str(daemon.pid))
        cleanup.callback(watch.close)
        events = ["loss"] * losses + ["kill"] * kills + ["switch"] * switches
        chance.shuffle(events)
        happened: list[Happened] = []
        current, pause_s = 0, 60 * minutes / (len(events) + 1)
        began_s = time.monotonic()
        for number, event in enumerate(events):
            time.sleep(max(0.0, began_s + (number + 1) * pause_s - time.monotonic()))
            version = versions[current]
            event_s, said = time.monotonic(), event
            if event == "loss":
                silent = chance.random() < 0.5
                said = "silent link" if silent else "cut link"
                version.relay.silence() if silent else version.relay.down()
                time.sleep(min(1.0, pause_s / 2))
                version.relay.up()
            elif event == "kill":
                version.kill()
                version.start()
            else:
                current += 1
                said = f"switch (pause {update(daemon, versions[current].link)['pause_ms']:.0f} ms)"
            happened.append(Happened(said, event_s, time.monotonic()))
        time.sleep(max(0.0, began_s + 60 * minutes - time.monotonic()))
        found = robot.end()
        pauses = Pauses(watch.end())
        with AdminConnection(daemon.name, daemon.runtime_dir) as connection:
            counted = connection.status()["remote"]
    print(f"{losses} lost links, {kills} killed replicas, {switches} changes of the version in {60 * minutes:.0f} s")
    print(f"the daemon's counts: {counted}")
    calls = [Call(**each) for each in found["calls"]]
    print(*account(calls, found["wrong"], happened, pauses, budget_s=_BUDGET_S), sep="\n")
    return int(bool(found["wrong"]))


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        description="A robot through lost links, killed replicas and changes of the version."
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--losses", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--switches", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    return run(options.minutes, options.losses, options.kills, options.switches, options.seed)


if __name__ == "__main__":
    sys.exit(main())
