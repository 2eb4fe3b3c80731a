"""A robot at 50 Hz through lost links, killed replicas and changes of the version: `python -m chaos.remote_links --minutes 10`.

The replicas are real ones on this machine, behind a bare gRPC server (tests/support/replica_server.py) or with `--ray` on a Ray cluster; the link goes
through a relay that is cut or silenced, and each version is a link package of its own. The account at the end has every call of the robot.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from chaos.processor_watch import Pauses
from chaos.remote_account import Happened, account
from chaos.remote_robot import Call
from shmserve.client.cli.connection import AdminConnection
from shmserve.daemon.packages.package import ModelPackage
from tests.support.admin_command import update
from tests.support.daemon_process import Daemon
from tests.support.folders import REPOSITORY
from tests.support.ray_service import GRPC_PORT, Cluster, replica_pids, running_cluster
from tests.support.relay import Relay, free_port
from tests.support.stand_in_uplink import link_package

BUDGET_S = 0.08
_LEAST_PAUSE_S = 3.0
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


class Version(Protocol):
    """One version of the model: its package, its replicas, and a link to them over a relay."""

    version: str
    gain: int
    link: Path
    relay: Relay

    def start(self) -> None:
        """Start it, beside the others."""

    def kill(self) -> None:
        """End one replica by SIGKILL, and have another one started."""

    def close(self) -> None:
        """End it, if it was started and not ended."""


class BareVersion:
    """A replica behind a bare gRPC server."""

    def __init__(self, folder: Path, gain: int) -> None:
        self.gain = gain
        self._port = free_port()
        self._package = _package(folder / f"package{gain}", gain)
        self.version = ModelPackage.read(self._package).version
        self.relay = Relay(folder / f"uplink{gain}.sock", self._port)
        keys: dict[str, Any] = {"budget_s": BUDGET_S, "probe_s": 0.2}
        self.link = link_package(folder / f"link{gain}", self.relay.target, self.version, local="", **keys)
        _package(self.link / "local", -1)
        self._replica: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.relay.up()
        command = [sys.executable, "-m", "tests.support.replica_server", str(self._package), f"127.0.0.1:{self._port}"]
        self._replica = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert self._replica.stdout is not None
        self._replica.stdout.readline()

    def kill(self) -> None:
        self._end()
        self.start()

    def close(self) -> None:
        self.relay.down()
        self._end()

    def _end(self) -> None:
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.kill()
            replica.wait()
            assert replica.stdin is not None and replica.stdout is not None
            replica.stdin.close()
            replica.stdout.close()


class RayVersion:
    """An application of Ray Serve with two replicas, deployed and retired by the commands of docs/how-to/remote.md."""

    def __init__(self, cluster: Cluster, gain: int) -> None:
        self.gain = gain
        self._cluster = cluster
        self._package = _package(cluster.folder / f"arm{gain}", gain)
        self.version = ModelPackage.read(self._package).version
        self._application = f"arm-{self.version[:8]}"
        self.relay = Relay(cluster.folder / f"uplink{gain}.sock", GRPC_PORT)
        self.link = Path()  # written by the deployment
        self._runs = False

    def start(self) -> None:
        self.relay.up()
        hold = self._cluster.folder / "hold"
        if not hold.exists():
            _package(hold, -1)
        self.link = self._cluster.deploy(self._package, self.relay.target, fallback=hold, budget_s=BUDGET_S)
        self._runs = True

    def kill(self) -> None:
        pids = replica_pids(self._application)
        assert pids, f"no replica of {self._application} runs"
        os.kill(pids[0], signal.SIGKILL)

    def close(self) -> None:
        self.relay.down()
        if self._runs:
            self._runs = False
            self._cluster.admin("retire", self._application)


def _package(folder: Path, gain: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "policy.py").write_text(_POLICY.replace("GAIN", str(gain)))
    (folder / "model.toml").write_text(_MANIFEST)
    return folder


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


def run(minutes: float, losses: int, kills: int, switches: int, seed: int, *, ray: bool, priority: int) -> int:
    """Run, print the account, and return the exit status: 1 for a wrong action or a failed call."""
    chance = random.Random(seed)
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="shmserve-links-")))
        gained = range(2, 3 + switches)
        versions: list[Version]
        if ray:
            cluster = cleanup.enter_context(running_cluster(folder))
            versions = [RayVersion(cluster, gain) for gain in gained]
        else:
            versions = [BareVersion(folder, gain) for gain in gained]
        for each in versions:
            cleanup.callback(each.close)
        version = versions[0]
        version.start()
        daemon = cleanup.enter_context(Daemon(version.link, arguments=("--engine-priority", str(priority))))
        gains = json.dumps({each.version: each.gain for each in versions})
        arguments = (daemon.name, str(daemon.runtime_dir), gains, str(priority))
        robot = Beside("chaos.remote_robot", folder / "robot.json", *arguments)
        cleanup.callback(robot.close)
        watch = Beside("chaos.processor_watch", folder / "watch.json", str(daemon.pid))
        cleanup.callback(watch.close)
        events = ["loss"] * losses + ["kill"] * kills + ["switch"] * switches
        chance.shuffle(events)
        happened: list[Happened] = []
        pause_s = 60 * minutes / (len(events) + 1)
        began_s = time.monotonic()
        for number, event in enumerate(events):
            # A deployment may take longer than the pause; then the next event still leaves time to answer in between.
            time.sleep(max(min(_LEAST_PAUSE_S, pause_s), began_s + (number + 1) * pause_s - time.monotonic()))
            event_s, said = time.monotonic(), event
            if event == "loss":
                silent = chance.random() < 0.5
                said = "silent link" if silent else "cut link"
                version.relay.silence() if silent else version.relay.down()
                time.sleep(min(1.0, pause_s / 2))
                version.relay.up()
            elif event == "kill":
                version.kill()
            else:
                before, version = version, versions[versions.index(version) + 1]
                version.start()
                happened.append(Happened("start of the next version", event_s, time.monotonic()))
                event_s = time.monotonic()
                said = f"switch (requests paused for {update(daemon, version.link)['pause_ms']:.0f} ms)"
                happened.append(Happened(said, event_s, time.monotonic()))
                event_s, said = time.monotonic(), "end of the version before"
                before.close()
            happened.append(Happened(said, event_s, time.monotonic()))
        time.sleep(max(0.0, began_s + 60 * minutes - time.monotonic()))
        found = robot.end()
        pauses = Pauses(watch.end())
        with AdminConnection(daemon.name, daemon.runtime_dir) as connection:
            counted = connection.status()["remote"]
    print(f"{losses} lost links, {kills} killed replicas, {switches} changes of the version in {60 * minutes:.0f} s")
    print(f"the daemon's counts: {counted}")
    calls = [Call(**each) for each in found["calls"]]
    print(*account(calls, found["wrong"], happened, pauses, budget_s=BUDGET_S), sep="\n")
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
    parser.add_argument("--ray", action="store_true", help="with a real Ray cluster, as `make chaos-ray` runs it")
    parser.add_argument("--priority", type=int, default=0, help="real-time priority of the engine and the robot")
    options = parser.parse_args()
    numbers = (options.minutes, options.losses, options.kills, options.switches, options.seed)
    return run(*numbers, ray=options.ray, priority=options.priority)


if __name__ == "__main__":
    sys.exit(main())
