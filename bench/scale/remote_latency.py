"""Latency that a link adds: `python -m bench.scale.remote_latency`.

The same package behind a local daemon, and behind a daemon with a link to a replica that a bare gRPC server on this machine
holds, asked in turn. The floor is a gRPC call that returns the bytes of the observation. A network and Ray's proxy come on top.
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

from shmserve.daemon.packages.package import ModelPackage
from shmserve.message import MAX_MESSAGE_BYTES, Kind, Packer, Request
from tests.support.daemon_process import Daemon
from tests.support.folders import REPOSITORY
from tests.support.stand_in_uplink import link_package

from .figure import Figure, main

TITLE = "A model on another machine: what the way there adds"
_ROUNDS = 8
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


def measure(seconds: float) -> list[Figure]:
    """Measure both observations through the three ways, in turn."""
    figures = []
    for name, (example, observation) in _OBSERVATIONS.items():
        with ExitStack() as cleanup:
            figures += _measured(cleanup, name, example, observation, seconds)
    return figures


def _measured(cleanup: ExitStack, name: str, example: str, observation: Any, seconds: float) -> list[Figure]:
    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="shmserve-link-")))
    policy = _POLICY.replace("EXAMPLE", example)
    package = folder / "package"
    package.mkdir()
    (package / "policy.py").write_text(policy)
    (package / "model.toml").write_text('[model]\nname = "zeros"\narrays = "numpy"\n')
    target = f"unix://{folder}/uplink.sock"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.replica_server", str(package), target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    cleanup.callback(server.wait)
    assert server.stdin is not None and server.stdout is not None
    cleanup.callback(server.stdin.close)
    server.stdout.readline()
    link = link_package(folder / "link", target, ModelPackage.read(package).version, local=policy, budget_s=2.0)
    local = cleanup.enter_context(cleanup.enter_context(Daemon(package)).client())
    linked = cleanup.enter_context(cleanup.enter_context(Daemon(link, name="u")).client())
    limits = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ]
    channel = cleanup.enter_context(grpc.insecure_channel(target, options=limits))
    echo = channel.unary_unary("/shmserve.Model/Echo")
    data = Packer("observation").request(Request(Kind.INFER), observation)
    ways: dict[str, Callable[[], object]] = {
        "local": lambda: local.infer(observation),
        "link": lambda: linked.infer(observation),
        "echo": lambda: echo(data),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(_ROUNDS):
        for way, call in ways.items():
            until_s = time.monotonic() + seconds / _ROUNDS
            while (began_s := time.monotonic()) < until_s:
                call()
                taken[way].append(1e6 * (time.monotonic() - began_s))
    if linked.request(observation).source != "remote":
        raise RuntimeError("the link is open: the figures are the fallback's")
    p50 = {way: float(np.median(times)) for way, times in taken.items()}
    p99 = {way: float(np.percentile(times, 99)) for way, times in taken.items()}
    what = f"{name}, {len(data):,} bytes"
    return [
        Figure(f"{name}_local_p50_us", f"{what}: local daemon, p50", p50["local"], "us"),
        Figure(f"{name}_link_p50_us", f"{what}: link, p50", p50["link"], "us", p50["echo"], "gRPC echo alone"),
        Figure(f"{name}_link_p99_us", f"{what}: link, p99", p99["link"], "us", p99["echo"], "gRPC echo alone"),
    ]


if __name__ == "__main__":
    main(TITLE, measure)
