"""GR00T's protocol: ZeroMQ REQ/REP that carries msgpack with each array as the bytes of np.save.

Speaks the dialect of Isaac-GR00T N1.5 and N1.6 (`gr00t/policy/server_client.py`, Apache-2.0, NVIDIA), rewritten
because importing gr00t brings a training stack along. GR00T itself offers only tcp; ipc is the same code on a Unix
socket.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from .peer import Infer, Ready, ServedPeer
from .policy import Policy


def encode(leaf: Any) -> Any:
    """msgpack's `default`: an array as GR00T's MsgSerializer spells it."""
    if isinstance(leaf, np.ndarray):
        saved = io.BytesIO()
        np.save(saved, leaf, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": saved.getvalue()}
    return leaf


def decode(tree: dict[str, Any]) -> Any:
    """msgpack's `object_hook`: the reverse."""
    if "__ndarray_class__" in tree:
        return np.load(io.BytesIO(tree["as_npy"]), allow_pickle=False)
    return tree


def _serve(bind_to: str, ready: Ready) -> None:
    import msgpack
    import zmq

    policy = Policy()

    def get_action(observation: dict[str, Any], options: None) -> tuple[dict[str, Any], dict[str, Any]]:
        return policy.infer(observation), {}

    handlers = {"get_action": get_action}
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REP)
    socket.bind(bind_to)
    ready(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    while True:
        request = msgpack.unpackb(socket.recv(), object_hook=decode)
        try:
            result: Any = handlers[request["endpoint"]](**request["data"])
        except (KeyError, TypeError, ValueError) as error:  # As GR00T's server: the error is the reply.
            result = {"error": str(error)}
        socket.send(msgpack.packb(result, default=encode))


class Gr00tZmqTcp(ServedPeer):
    """`PolicyServer` and `PolicyClient`, as GR00T ships them."""

    name = "gr00t-zmq-tcp"
    packages = ("zmq", "msgpack")

    @staticmethod
    def serve(directory: Path, ready: Ready) -> None:
        _serve("tcp://127.0.0.1:*", ready)

    def connect(self) -> Infer:
        import msgpack
        import zmq

        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self.address)

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            request = {"endpoint": "get_action", "data": {"observation": observation, "options": None}}
            socket.send(msgpack.packb(request, default=encode))
            response = msgpack.unpackb(socket.recv(), object_hook=decode)
            if "error" in response:
                raise RuntimeError(f"Server error: {response['error']}")
            action: dict[str, Any] = response[0]
            return action

        return infer


class Gr00tZmqIpc(Gr00tZmqTcp):
    """The same over a Unix socket."""

    name = "gr00t-zmq-ipc"

    @staticmethod
    def serve(directory: Path, ready: Ready) -> None:
        _serve(f"ipc://{directory}/policy", ready)
