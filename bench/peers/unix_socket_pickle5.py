"""Carefully written server on a Unix socket, not a product: protocol-5 pickle with the arrays out of band.

Arrays go from the caller's memory into the socket by one `sendmsg`,
and from the socket into 64-byte aligned memory that is reused between requests by `recv_into`.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np

from .out_of_band import ALIGNMENT, PREFIX, decode, encode, sizes_in, up
from .peer import Infer, Ready, ServedPeer
from .policy import Policy


class Stream:
    """Connection that sends and receives Python objects over one socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._kept = memoryview(bytearray())

    def send(self, value: Any) -> None:
        head, raw = encode(value)
        parts = [memoryview(head), *raw]
        while parts:
            sent = self._socket.sendmsg(parts)
            while parts and sent >= parts[0].nbytes:
                sent -= parts.pop(0).nbytes
            if sent:
                parts[0] = parts[0][sent:]

    def receive(self, own: bool) -> Any:
        """Return the next object; its arrays are the caller's, or valid until the next `receive`."""
        prefix = self._fill(memoryview(bytearray(PREFIX.size)))
        head = memoryview(bytearray(PREFIX.unpack(prefix)[0]))
        head[: PREFIX.size] = prefix
        self._fill(head[PREFIX.size :])
        sizes = sizes_in(head)
        memory = (aligned if own else self._memory)(sum(map(up, sizes)))
        buffers, start = [], 0
        for size in sizes:
            buffers.append(self._fill(memory[start : start + size]))
            start += up(size)
        return decode(head, buffers)

    def _memory(self, size: int) -> memoryview:
        if self._kept.nbytes < size:
            self._kept = aligned(size)
        return self._kept

    def _fill(self, view: memoryview) -> memoryview:
        filled = 0
        while filled < view.nbytes:
            received = self._socket.recv_into(view[filled:])
            if received == 0:
                raise EOFError("the other end closed the connection")
            filled += received
        return view


def aligned(size: int) -> memoryview:
    """Allocate memory that starts at a multiple of 64."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    return memory.data[offset : offset + size]


class UnixSocketPickle5(ServedPeer):
    """Peer with one thread per connection."""

    name = "unix-socket-pickle5"

    @staticmethod
    def serve(directory: Path, ready: Ready) -> None:
        policy, one_at_a_time = Policy(), threading.Lock()

        def answer(connection: socket.socket) -> None:
            stream = Stream(connection)
            while True:
                try:
                    observation = stream.receive(own=False)
                except EOFError:
                    return
                with one_at_a_time:
                    reply = policy.infer(observation)
                stream.send(reply)

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / "policy"))
            listener.listen()
            ready(str(directory / "policy"))
            while True:
                threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()

    def connect(self) -> Infer:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        stream = Stream(connection)

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            stream.send(observation)
            reply: dict[str, Any] = stream.receive(own=True)
            return reply

        return infer
