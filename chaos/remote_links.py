"""A robot at 50 Hz through lost links, killed replicas and changes of the version: `python -m chaos.remote_links --minutes 10`.

The replicas are real ones behind a bare gRPC server (tests/support/replica_server.py) on this machine, the link goes through a
relay that is cut or silenced, and each version is a link package of its own. The account at the end has every call of the robot.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from shmserve.client.cli.connection import AdminConnection
from shmserve.daemon.packages.package import ModelPackage
from tests.support.admin_command import update
from tests.support.daemon_process import Daemon
from tests.support.folders import REPOSITORY
from tests.support.relay import Relay
from tests.support.stand_in_uplink import link_package

_PERIOD_S = 0.02
_BUDGET_S = 0.08
#: A call may take this much longer than its budget.
_SLACK_S = 0.01
_POLICY = """
import numpy as np

class Policy:
    def __init__(self, path, device):
        pass

    def infer(self, observation):
        return {"action": np.asarray(observation["state"]) * GAIN}

    def example_observation(self):
        return {"state": np.zeros(7, np.float32)}
"""


class Version:
    """One version: its package, its replica, which may be killed, and its link."""

    def __init__(self, folder: Path, gain: int, port: int) -> None:
        self.gain = gain
        self._package = folder / f"package{gain}"
        self._package.mkdir()
        (self._package / "policy.py").write_text(_POLICY.replace("GAIN", str(gain)))
        (self._package / "model.toml").write_text('[model]\nname = "arm"\narrays = "numpy"\n')
        self.version = ModelPackage.read(self._package).version
        self.relay = Relay(folder / f"uplink{gain}.sock", port)
        local = _POLICY.replace("GAIN", "-1")
        keys: dict[str, Any] = {"budget_s": _BUDGET_S, "probe_s": 0.2}
        self.link = link_package(folder / f"link{gain}", self.relay.target, self.version, local=local, **keys)
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


class Robot:
    """Asks at 50 Hz in a thread, and keeps what it got."""

    def __init__(self, daemon: Daemon, gains: dict[str, int]) -> None:
        #: (seconds taken, source, when it began)
        self.calls: list[tuple[float, str, float]] = []
        self.wrong: list[str] = []
        self._gains = gains
        self._client = daemon.client()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        due_s = time.monotonic()
        number = 0
        while not self._ended.is_set():
            number += 1
            state = np.full(7, number % 1000, np.float32)
            began_s = time.monotonic()
            try:
                reply = self._client.request({"state": state}, timeout=5)
            except Exception as error:  # noqa: BLE001  whatever it is belongs into the account
                self.wrong.append(f"{type(error).__name__}: {error}")
                continue
            self.calls.append((time.monotonic() - began_s, reply.source, began_s))
            gain = self._gains.get(reply.model_version, -1) if reply.source == "remote" else -1
            if not np.array_equal(reply.action["action"], state * gain):
                self.wrong.append(
                    f"{reply.source} {reply.model_version}: not {gain} times the state of request {number}"
                )
            due_s = max(due_s + _PERIOD_S, time.monotonic())
            self._ended.wait(due_s - time.monotonic())

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()


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
        robot = Robot(daemon, {version.version: version.gain for version in versions})
        cleanup.callback(robot.end)
        events = ["loss"] * losses + ["kill"] * kills + ["switch"] * switches
        chance.shuffle(events)
        happened = [(time.monotonic(), "start")]
        current, pause_s = 0, 60 * minutes / (len(events) + 1)
        began_s = time.monotonic()
        for number, event in enumerate(events):
            time.sleep(max(0.0, began_s + (number + 1) * pause_s - time.monotonic()))
            version = versions[current]
            happened.append((time.monotonic(), event))
            if event == "loss":
                version.relay.silence() if chance.random() < 0.5 else version.relay.down()
                time.sleep(min(1.0, pause_s / 2))
                version.relay.up()
            elif event == "kill":
                version.kill()
                version.start()
            else:
                current += 1
                update(daemon, versions[current].link)
        time.sleep(max(0.0, began_s + 60 * minutes - time.monotonic()))
        robot.end()
        with AdminConnection(daemon.name, daemon.runtime_dir) as connection:
            counted = connection.status()["remote"]
    times = np.array([taken for taken, _, _ in robot.calls])
    over = times[times > _BUDGET_S + _SLACK_S]
    print(f"{losses} lost links, {kills} killed replicas, {switches} changes of the version in {60 * minutes:.0f} s")
    print(f"calls: {len(times)}, answered by {dict(Counter(source for _, source, _ in robot.calls))}")
    print(f"the daemon's counts: {counted}")
    print(f"wrong or failed: {len(robot.wrong)}", *sorted(set(robot.wrong))[:5], sep="\n  ")
    print(
        f"longer than budget + {1000 * _SLACK_S:.0f} ms ({1000 * (_BUDGET_S + _SLACK_S):.0f} ms): {len(over)}; "
        f"p50 {1000 * np.median(times):.1f}, p99 {1000 * np.percentile(times, 99):.1f}, longest {1000 * times.max():.1f} ms"
    )
    for taken, source, at_s in sorted(robot.calls, reverse=True)[: min(len(over), 5)]:
        before_s, event = max(each for each in happened if each[0] <= at_s + taken)
        print(f"  {1000 * taken:.0f} ms, answered by {source}, begun {at_s - before_s:+.1f} s after: {event}")
    return int(bool(robot.wrong))


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
