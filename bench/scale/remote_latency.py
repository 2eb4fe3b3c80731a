"""Latency that a link adds: `python -m bench.scale.remote_latency`, or `make bench-ray` with a real Ray cluster.

The same package behind a local daemon, and behind a daemon with a link to a replica that a bare gRPC server on this machine
holds, asked in turn. The floor is a gRPC call that returns the bytes of the observation. With `--ray` a second link leads to Ray Serve's proxy
through a relay; its floor is the same request, sent to that proxy by gRPC alone. A network comes on top.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from shmserve.client import ShmClient
from shmserve.daemon.engine.models.uplink import INFER
from shmserve.daemon.packages.package import ModelPackage
from shmserve.message import MAX_MESSAGE_BYTES, Kind, Packer, Request
from tests.support.daemon_process import Daemon
from tests.support.folders import REPOSITORY
from tests.support.ray_service import GRPC_PORT, Cluster, running_cluster
from tests.support.stand_in_uplink import link_package

from .figure import Figure, main

TITLE = "A model on another machine: the latency that the link adds"
_ROUNDS = 8
_BUDGET_S = 2.0
#: Each way and its floor, with their headings.
_SHOWN = (
    ("link", "link", "echo", "gRPC echo alone"),
    ("ray", "link to Ray Serve", "proxy", "Ray Serve's proxy by gRPC alone"),
)
_POLICY = """
import numpy as np

class Policy:
    def __init__(self, path, device):
        pass

    def infer(self, observation):
        return {"actions": np.zeros((16, 7), np.float32)}

    def example_observation(self):
        return EXAMPLE
"""
_OBSERVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ('{"state": np.zeros(7, np.float32)}', {"state": np.ones(7, np.float32)}),
    "images": (
        '{"images": np.zeros((3, 224, 224, 3), np.uint8)}',
        {"images": np.ones((3, 224, 224, 3), np.uint8)},
    ),
}


def measure(seconds: float, *, ray: bool = False) -> list[Figure]:
    """Measure both observations through all ways, in turn; `ray`: also through a real cluster."""
    figures = []
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="shmserve-link-")))
        cluster = cleanup.enter_context(running_cluster(folder)) if ray else None
        for name, (example, observation) in _OBSERVATIONS.items():
            with ExitStack() as of_one:
                ways = _Ways(of_one, folder / name, example, observation)
                if cluster is not None:
                    ways.add_ray(cluster)
                figures += ways.measured(name, seconds)
    return figures


class _Ways:
    """The ways to ask one package with one observation; their processes end with `cleanup`."""

    def __init__(self, cleanup: ExitStack, folder: Path, example: str, observation: Any) -> None:
        self._cleanup, self._folder, self._observation = cleanup, folder, observation
        self._policy = _POLICY.replace("EXAMPLE", example)
        self._package = folder / f"zeros-{folder.name}"
        self._package.mkdir(parents=True)
        (self._package / "policy.py").write_text(self._policy)
        (self._package / "model.toml").write_text(f'[model]\nname = "{self._package.name}"\narrays = "numpy"\n')
        self._version = ModelPackage.read(self._package).version
        self._links: list[ShmClient] = []
        target = f"unix://{folder}/uplink.sock"
        self._start("tests.support.replica_server", str(self._package), target)
        keys: dict[str, Any] = {"local": self._policy, "budget_s": _BUDGET_S}
        link = link_package(folder / "link", target, self._version, **keys)
        self._message = Packer("observation").request(Request(Kind.INFER, version=int(self._version, 16)), observation)
        self._calls: dict[str, Callable[[], object]] = {
            "local": self._client(self._package, "t"),
            "link": self._client(link, "u"),
            "echo": self._bare(target, "/shmserve.Model/Echo"),
        }

    def add_ray(self, cluster: Cluster) -> None:
        """Deploy the package on the cluster, and ask it by a link and by gRPC alone."""
        socket = self._folder / "ray.sock"
        self._start("tests.support.relay", str(socket), str(GRPC_PORT))
        hold = self._folder / "hold"
        hold.mkdir()
        (hold / "policy.py").write_text(self._policy)
        link = cluster.deploy(self._package, f"unix://{socket}", fallback=hold, budget_s=_BUDGET_S)
        self._calls["ray"] = self._client(link, "v")
        application = ("application", f"{self._package.name}-{self._version[:8]}")
        self._calls["proxy"] = self._bare(f"127.0.0.1:{GRPC_PORT}", INFER, application)

    def measured(self, name: str, seconds: float) -> list[Figure]:
        """Ask in turn, so that what else the machine does meets all ways alike."""
        taken: dict[str, list[float]] = {way: [] for way in self._calls}
        for _ in range(_ROUNDS):
            for way, call in self._calls.items():
                until_s = time.monotonic() + seconds / _ROUNDS
                while (began_s := time.monotonic()) < until_s:
                    call()
                    taken[way].append(1e6 * (time.monotonic() - began_s))
        if any(link.request(self._observation).source == "fallback" for link in self._links):
            raise RuntimeError("a link is open: the figures are the fallback's")
        p50 = {way: float(np.median(times)) for way, times in taken.items()}
        p99 = {way: float(np.percentile(times, 99)) for way, times in taken.items()}
        what = f"{name}, {len(self._message):,} bytes"
        figures = [Figure(f"{name}_local_p50_us", f"{what}: local daemon, p50", p50["local"], "us")]
        for way, said, floor, floor_said in _SHOWN:
            if way in taken:
                for at, of in (("p50", p50), ("p99", p99)):
                    told = f"{what}: {said}, {at}"
                    figures.append(Figure(f"{name}_{way}_{at}_us", told, of[way], "us", of[floor], floor_said))
        return figures

    def _start(self, module: str, *arguments: str) -> None:
        """Start a process that prints a line when it is ready, and ends with its standard input."""
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert process.stdin is not None and process.stdout is not None
        self._cleanup.callback(process.wait)
        self._cleanup.callback(process.stdin.close)
        process.stdout.readline()

    def _client(self, package: Path, name: str) -> Callable[[], object]:
        daemon = self._cleanup.enter_context(Daemon(package, name=name))
        client = self._cleanup.enter_context(daemon.client())
        self._links.append(client)
        return lambda: client.infer(self._observation)

    def _bare(self, target: str, method: str, *metadata: tuple[str, str]) -> Callable[[], object]:
        limits = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ]
        call = self._cleanup.enter_context(grpc.insecure_channel(target, options=limits)).unary_unary(method)
        return lambda: call(self._message, metadata=metadata)


if __name__ == "__main__":
    main(
        TITLE,
        measure,
        flags={"ray": "also by a real Ray cluster, which this starts; in the environment of `make bench-ray`"},
    )
