"""NVIDIA Triton with its shared-memory extension: tensors in shared memory, one gRPC call per request.

The server is the `tritonserver` of the nvidia-pytriton package with the policy in Triton's own Python backend, without
pytriton's proxy. That package and its stub need numpy < 2, so they are in a separate folder, named by
SHMSERVE_BENCH_TRITON; README.md has the command that makes it. The client uses tritonclient as its manual shows.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from .peer import START_TIMEOUT_S, Infer, Ready, ServedPeer, terminate_by_exception
from .triton_client import Form, form_of

FOLDER = "SHMSERVE_BENCH_TRITON"
LIBRARIES = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
LIBPYTHON = Path(sysconfig.get_config_var("INSTSONAME") or "no shared libpython")
END_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"


def stub(folder: Path) -> Path:
    """Return the program that runs Python models, for this Python version."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "pytriton/tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"


class Triton(ServedPeer):
    """Peer with Triton's Python backend and system shared memory for inputs and outputs."""

    name = "triton-shm"
    packages = ("tritonclient", "grpc")

    def available(self) -> str | None:
        if FOLDER not in os.environ:
            return f"{FOLDER} does not name a folder with nvidia-pytriton and numpy < 2 (see bench/README.md)"
        if not stub(Path(os.environ[FOLDER])).exists():
            return f"{stub(Path(os.environ[FOLDER]))} does not exist: nvidia-pytriton has none for this Python"
        if not (LIBRARIES / LIBPYTHON).exists():
            return f"Triton's stub needs Python as a shared library, and {LIBRARIES} has no {LIBPYTHON}"
        return super().available()

    @staticmethod
    def serve(directory: Path, ready: Ready) -> None:
        from tritonclient.grpc import InferenceServerClient, InferenceServerException

        folder, models, backend = Path(os.environ[FOLDER]), directory / "models", directory / "backends" / "python"
        models.mkdir()
        shutil.copytree(folder / "pytriton/tritonserver/backends/python", backend)
        shutil.copy(stub(folder), backend)
        program = folder / "pytriton/tritonserver/bin/tritonserver"
        program.chmod(0o755)
        (backend / stub(folder).name).chmod(0o755)
        port = free_port()
        options = {
            "model-repository": models,
            "backend-directory": backend.parent,
            "model-control-mode": "explicit",
            "allow-http": "false",
            "allow-metrics": "false",
            "grpc-address": "127.0.0.1",
            "grpc-port": port,
            "exit-timeout-secs": 3,
        }
        environment = {**os.environ, "LD_LIBRARY_PATH": f"{folder / 'nvidia_pytriton.libs'}:{LIBRARIES}"}
        terminate_by_exception()
        with (directory / "log").open("w") as log:
            command = [sys.executable, "-c", END_WITH_PARENT, str(program), "--disable-auto-complete-config"]
            command += [f"--{option}={value}" for option, value in options.items()]
            server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            client, deadline = InferenceServerClient(f"127.0.0.1:{port}"), time.monotonic() + START_TIMEOUT_S
            while server.poll() is None and time.monotonic() < deadline:
                try:
                    if client.is_server_ready():
                        ready(f"127.0.0.1:{port}")
                        server.wait()
                except InferenceServerException:
                    time.sleep(0.1)
            print((directory / "log").read_text(), file=sys.stderr)
        finally:
            server.terminate()
            server.wait()

    def connect(self) -> Infer:
        from tritonclient.grpc import InferenceServerClient

        client = InferenceServerClient(self.address)
        forms: dict[object, Form] = {}

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            form = form_of(observation)
            if form not in forms:
                forms[form] = Form(client, observation, os.environ[FOLDER])
            return forms[form].infer(observation)

        return infer


def free_port() -> int:
    """Return a TCP port that was free a moment ago: tritonserver does not report the port it chooses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
