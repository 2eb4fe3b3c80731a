"""Answers one Attach on an inherited listener as a daemon would, with memory of the user whose number it is given."""

import json
import os
import socket
import sys
import time

from shmserve.layout import Geometry
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity
from tests.support.stranger_process import become

_GEOMETRY = Geometry(1, 4096, 65536)


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    uid, passed_on = int(sys.argv[2]), sys.argv[3] == "passes-on"
    identity = Identity(7, 0, 1)
    sealed = SealedChannelFds()
    given = sealed.create(identity, _GEOMETRY, _GEOMETRY) if passed_on else []  # of root, who is a daemon itself
    become(uid)
    if passed_on:
        given[1] = given[0]  # what that daemon gave it to write to, as what others are to read
    else:
        given = sealed.create(identity, _GEOMETRY, _GEOMETRY)
    connection, _ = listener.accept()
    connection.recv(1 << 16)
    reply = {
        "channel_info": {"identity": vars(identity), "names": None},
        "trusted": True,
        "state": "ready",
    }
    socket.send_fds(connection, [json.dumps({"parameters": reply}).encode() + b"\0"], given)
    print(os.getresuid(), flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main()
