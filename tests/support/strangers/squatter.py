"""Serves in DIRECTORY as the user UID, as a daemon would, and says what it was asked: a JSON list for each connection.

`squatter UID DIRECTORY [FD...]`: it makes the directory and its sockets, or listens at sockets that others have bound.
"""

import json
import os
import selectors
import socket
import sys
from pathlib import Path
from typing import Any

from shmserve.layout import Geometry
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity
from tests.support.stranger_process import become

_GEOMETRY = Geometry(1, 4096, 65536)


def main() -> None:
    uid, directory, *given = int(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
    become(uid)
    os.umask(0o022)
    listeners = [socket.socket(fileno=descriptor) for descriptor in given]
    if not listeners:
        directory.mkdir(parents=True, exist_ok=True)
        for file in ("client.sock", "admin.sock"):
            listeners.append(socket.socket(socket.AF_UNIX))
            listeners[-1].bind(str(directory / file))
            (directory / file).chmod(0o666)
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            listener.listen()
            selector.register(listener, selectors.EVENT_READ)
        print("serves", flush=True)
        while True:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                _serve(key.fileobj.accept()[0])


def _serve(connection: socket.socket) -> None:
    heard = []
    buffer = b""
    sealed = SealedChannelFds()
    try:
        while data := connection.recv(1 << 16):
            buffer += data
            while b"\0" in buffer:
                call, _, buffer = buffer.partition(b"\0")
                heard.append(json.loads(call)["method"])
                reply, fds = _answer(heard[-1], sealed)
                socket.send_fds(connection, [json.dumps({"parameters": reply}).encode() + b"\0"], fds)
    except ConnectionError:
        pass
    print(json.dumps(heard), flush=True)
    sealed.close()
    connection.close()


def _answer(method: str, sealed: SealedChannelFds) -> tuple[dict[str, Any], list[int]]:
    if method.endswith("Attach"):
        identity = Identity(7, 0, 1)
        reply = {"channel_info": {"identity": vars(identity), "names": None}, "trusted": False, "state": "ready"}
        return reply, sealed.create(identity, _GEOMETRY, _GEOMETRY)
    if method.endswith("Describe"):
        return {"service": "t", "state": "ready", "epoch": 7, "model": None}, []
    return {"status": {"pid": os.getpid()}}, []


if __name__ == "__main__":
    main()
