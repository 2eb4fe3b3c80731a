"""openpi's protocol: a WebSocket that carries msgpack with the arrays' bytes inside.

Does, call for call, what openpi's `serving/websocket_policy_server.py` and openpi-client 0.1.2 do (both Apache-2.0,
Physical Intelligence), rewritten because openpi-client wants numpy < 2 and openpi brings JAX along: metadata upon
connecting, inference on the server's event loop, the same library defaults, the same bytes on the wire.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np

from .peer import Infer, Ready, ServedPeer
from .policy import Policy


def encode(leaf: Any) -> Any:
    """msgpack's `default`: an array as openpi-client spells it."""
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "VOc":
        raise ValueError(f"msgpack cannot carry an array of dtype {leaf.dtype}")
    if isinstance(leaf, np.ndarray):
        return {b"__ndarray__": True, b"data": leaf.tobytes(), b"dtype": leaf.dtype.str, b"shape": leaf.shape}
    if isinstance(leaf, np.generic):
        return {b"__npgeneric__": True, b"data": leaf.item(), b"dtype": leaf.dtype.str}
    return leaf


def decode(tree: dict[Any, Any]) -> Any:
    """msgpack's `object_hook`: the reverse; arrays are read-only views of the message."""
    if b"__ndarray__" in tree:
        return np.ndarray(buffer=tree[b"data"], dtype=np.dtype(tree[b"dtype"]), shape=tree[b"shape"])
    if b"__npgeneric__" in tree:
        return np.dtype(tree[b"dtype"]).type(tree[b"data"])
    return tree


class OpenPi(ServedPeer):
    """Peer with `WebsocketPolicyServer` and `WebsocketClientPolicy`."""

    name = "openpi-websocket"
    packages = ("websockets", "msgpack")

    @staticmethod
    def serve(directory: Path, ready: Ready) -> None:
        import asyncio

        import msgpack
        from websockets.asyncio.server import ServerConnection, serve
        from websockets.exceptions import ConnectionClosed

        policy = Policy()

        async def handle(websocket: ServerConnection) -> None:
            packer = msgpack.Packer(default=encode)
            await websocket.send(packer.pack({}))
            previous_s: float | None = None
            while True:
                try:
                    started = time.monotonic()
                    observation = msgpack.unpackb(await websocket.recv(), object_hook=decode)
                    inference = time.monotonic()
                    action = policy.infer(observation)
                    action["server_timing"] = {"infer_ms": (time.monotonic() - inference) * 1000}
                    if previous_s is not None:
                        action["server_timing"]["prev_total_ms"] = previous_s * 1000
                    await websocket.send(packer.pack(action))
                    previous_s = time.monotonic() - started
                except ConnectionClosed:
                    return

        async def run() -> None:
            async with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
                ready(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")
                await server.serve_forever()

        asyncio.run(run())

    def connect(self) -> Infer:
        import msgpack
        from websockets.sync.client import connect

        packer = msgpack.Packer(default=encode)
        unpack = functools.partial(msgpack.unpackb, object_hook=decode)
        websocket = connect(self.address, compression=None, max_size=None)
        unpack(websocket.recv())  # The server's metadata.

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            websocket.send(packer.pack(observation))
            response = websocket.recv()
            if type(response) is str:
                raise RuntimeError(f"Error in inference server:\n{response}")
            reply: dict[str, Any] = unpack(response)
            return reply

        return infer
