"""A real Ray cluster behind a real daemon. `make test-ray` runs this in a network namespace with the loopback device alone."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.daemon_process import SHMSERVED, Daemon, wait_until
from tests.support.ray_service import GRPC_PORT, Cluster, running_cluster
from tests.support.relay import Relay
from tests.support.stand_in_uplink import LOCAL

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

_POLICY = """
import os
import time

import numpy as np

GAIN = {gain}

class Policy:
    def __init__(self, package, device):
        pass

    def infer(self, observation):
        return self.infer_batch([observation])[0]

    def infer_batch(self, observations):
        time.sleep(0.02)  # so that requests of several robots wait together
        return [
            {{"action": observation["state"] * GAIN, "rows": len(observations), "pid": os.getpid()}}
            for observation in observations
        ]

    def example_observation(self):
        return {{"state": np.zeros(3, np.float32)}}
"""
_LOCAL = LOCAL.replace("* -1}", '* -1, "rows": 0, "pid": 0}')
OBSERVATION = {"state": np.ones(3, np.float32)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    hold = folder / "hold"
    hold.mkdir()
    (hold / "policy.py").write_text(_LOCAL)
    with running_cluster(folder) as running:
        yield running


def deployed(cluster: Cluster, gain: int, target: str) -> Path:
    """Deploy the policy with this gain; return its link package."""
    package = cluster.folder / f"arm{gain}"
    package.mkdir()
    (package / "policy.py").write_text(_POLICY.format(gain=gain))
    (package / "model.toml").write_text('[model]\nname = "arm"\nmax_batch = 8\nsampling = true\n')
    return cluster.deploy(package, target, fallback=cluster.folder / "hold", budget_s=3)


def test_a_package_is_deployed_linked_updated_and_retired(cluster: Cluster, tmp_path: Path) -> None:
    with Relay(tmp_path / "uplink.sock", GRPC_PORT) as relay:
        first = deployed(cluster, 2, relay.target)
        with Daemon(first) as daemon, daemon.client() as robot:
            reply = robot.request(OBSERVATION, timeout=20)
            assert reply.source == "remote" and reply.action["action"][0] == 2

            _serves_robots_in_batches(daemon)
            _survives_a_killed_replica(daemon, int(reply.action["pid"]))
            _survives_a_cut_link(daemon, relay)

            second = deployed(cluster, 5, relay.target)
            sources = _asked_during(daemon, second)
            assert sources <= {("remote", 2), ("remote", 5), ("fallback", -1)}
            after = robot.request(OBSERVATION, timeout=20)
            assert (after.source, after.action["action"][0]) == ("remote", 5)

            shown = cluster.admin("status")
            names = [line.split()[0] for line in shown.splitlines()]
            assert len(names) == 2 and shown.count("running") >= 2
            old = next(name for name in names if after.model_version[:8] not in name)
            cluster.admin("retire", old)
            assert old not in cluster.admin("status")
            assert robot.request(OBSERVATION, timeout=20).source == "remote"


def _serves_robots_in_batches(daemon: Daemon) -> None:
    robots = [daemon.client() for _ in range(8)]
    found: set[tuple[int, int]] = set()
    for _ in range(20):
        pending = [robot.submit(OBSERVATION, timeout=20) for robot in robots]
        found |= {(each.result()["rows"], each.result()["pid"]) for each in pending}
    for robot in robots:
        robot.close()
    assert max(rows for rows, _ in found) > 1, "requests that wait together run together"
    assert len({pid for _, pid in found if pid}) == 2, "both replicas are asked"


def _survives_a_killed_replica(daemon: Daemon, pid: int) -> None:
    with daemon.client() as robot:
        os.kill(pid, signal.SIGKILL)
        replies = [robot.request(OBSERVATION, timeout=20) for _ in range(20)]
        assert {(reply.source, float(reply.action["action"][0])) for reply in replies} <= {
            ("remote", 2),
            ("fallback", -1),
        }
        wait_until("the cluster answers again", lambda: robot.request(OBSERVATION).source == "remote", 60)


def _survives_a_cut_link(daemon: Daemon, relay: Relay) -> None:
    with daemon.client() as robot:
        relay.down()
        assert {robot.request(OBSERVATION, timeout=20).source for _ in range(5)} == {"fallback"}
        relay.up()
        wait_until("the link is used again", lambda: robot.request(OBSERVATION).source == "remote", 60)


def _asked_during(daemon: Daemon, package: Path) -> set[tuple[str, int]]:
    """Ask while the daemon is updated; return who answered what."""
    found: set[tuple[str, int]] = set()
    command: list[Any] = [SHMSERVED.with_name("shmserve-admin"), "--name", daemon.name]
    command += ["--runtime-dir", daemon.runtime_dir, "update-model", package]
    update = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with daemon.client() as robot:
        while update.poll() is None:
            reply = robot.request(OBSERVATION, timeout=20)
            found.add((reply.source, int(reply.action["action"][0])))
    output, _ = update.communicate()
    assert update.returncode == 0, output
    return found
