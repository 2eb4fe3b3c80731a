"""A cluster that is not there: a real gRPC server on a Unix socket that answers shmserve's messages as the test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from shmserve.contract import contract_of
from shmserve.message import MAX_MESSAGE_BYTES, Kind, Packer, Reply, Request, read_request
from shmserve.protocol import Status

if TYPE_CHECKING:
    from typing_extensions import Self

_LIMITS = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]


def doubled(observation: Any) -> Any:
    """The remote model: twice the state."""
    return {"action": np.asarray(observation["state"], np.float32) * 2}


class StandInUplink:
    """Serves one version of one model; a test changes the attributes while it runs."""

    def __init__(self, path: Path, version: str, model: Callable[[Any], Any] = doubled, *, port: int = 0) -> None:
        """Listen on `path`, and on this port of 127.0.0.1 unless it is 0."""
        self._port = port
        self.target = f"unix://{path}"
        self.version = int(version, 16)
        self.model = model
        self.example: Any = {"state": np.zeros(3, np.float32)}
        self.description: dict[str, Any] = {"name": "double", "max_batch": 8, "stateful": False, "metadata": {"hz": 50}}
        #: The gRPC status of every call; None: it is answered.
        self.refuses: grpc.StatusCode | None = None
        #: Replaces the bytes of a reply; None: they are right.
        self.spoils: Callable[[bytes], bytes] | None = None
        #: While it is set, requests to infer are answered; probes and descriptions always are.
        self.answers = threading.Event()
        self.answers.set()
        self.requests: list[Request] = []
        self.probes = 0
        self._server: grpc.Server | None = None

    def start(self) -> Self:
        """Listen; after `stop` again on the same socket."""
        server = grpc.server(ThreadPoolExecutor(16), options=_LIMITS)
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(call)
            for name, call in (("Infer", self._infer), ("Describe", self._describe))
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shmserve.Model", handlers),))
        server.add_insecure_port(self.target)
        if self._port:
            server.add_insecure_port(f"127.0.0.1:{self._port}")
        server.start()
        self._server = server
        return self

    def stop(self) -> None:
        """End the connections and the socket."""
        self.answers.set()
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def _infer(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        if self.refuses is not None:
            context.abort(self.refuses, "as the test says")
        request, observation = read_request(data)
        self.requests.append(request)
        self.answers.wait(30)
        packer = Packer("action")
        try:
            tree, status = self.model(observation), Status.OK
        except Exception as error:  # noqa: BLE001  the model's own
            tree, status = (type(error).__name__, str(error)), Status.FAILED
        reply = packer.reply(Reply(status, 0, self.version, request.number, 1000, 2000), tree)
        return self.spoils(reply) if self.spoils is not None else reply

    def _describe(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        if self.refuses is not None:
            context.abort(self.refuses, "as the test says")
        request, _ = read_request(data)
        head, packer = Reply(Status.OK, 0, self.version, request.number), Packer("action")
        if request.kind == Kind.PROBE:
            self.probes += 1
            return packer.reply(head)
        contract = contract_of(self.example, self.model(self.example))
        description = json.dumps({**self.description, "contract": contract, "version": f"{self.version:016x}"})
        return packer.reply(head, {"description": description, "example": self.example})

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


LOCAL = """
import numpy as np

class Policy:
    def __init__(self, package, device):
        pass

    def infer(self, observation):
        if float(observation["state"][0]) == 13:
            raise ValueError("no such joint")
        return {"action": observation["state"] * -1}

    def example_observation(self):
        return {"state": np.zeros(3, np.float32)}
"""


def link_package(
    folder: Path, uplink_target: str, version: str, *, local: str | None = LOCAL, checks: str = "", **keys: Any
) -> Path:
    """Write a link to `version` with a policy inside that answers with the negative state; `keys` of [remote]."""
    folder.mkdir(parents=True)
    table: dict[str, Any] = {"target": uplink_target, "application": "double", "version": version, **keys}
    if local is not None:
        table.setdefault("fallback", "local")
        (folder / "local").mkdir()
        (folder / "local" / "policy.py").write_text(local)
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    (folder / "model.toml").write_text(
        "\n".join(['[model]\nname = "link"\nformat = "remote"', "[remote]", *lines, checks])
    )
    return folder
