"""Attaching to a scripted varlink peer in this process: which error the caller gets for each answer."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.client.capacity import SlotCapacity
from shmserve.client.connection import Connection
from shmserve.client.error_mapping import INTERFACE
from shmserve.errors import (
    ClientEvicted,
    ObservationTooLarge,
    ProtocolMismatch,
    ServiceUnavailable,
    ShmServeError,
)
from shmserve.protocol import WIRE_VERSION


class Peer:
    """Accepts one connection, notes its call and sends the bytes that the test gave, then closes."""

    def __init__(self, directory: Path, answer: bytes, *, silent: bool = False) -> None:
        self.calls: list[dict[str, Any]] = []
        self._answer, self._silent = answer, silent
        self.done = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(directory / "client.sock"))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            received = b""
            while b"\0" not in received and (data := connection.recv(65536)):
                received += data
            self.calls.append(json.loads(received.split(b"\0")[0]))
            if self._silent:
                self.done.wait(30)
            else:
                connection.sendall(self._answer)

    def close(self) -> None:
        self.done.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="shmserve-") as name:
        yield Path(name)


def attach(directory: Path, answer: bytes, *, silent: bool = False) -> tuple[ShmServeError, list[dict[str, Any]]]:
    """Attach to a peer that answers this; return the error and the calls of the peer."""
    peer = Peer(directory, answer, silent=silent)
    before = len(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(ShmServeError) as raised:
            Connection.open("arm", directory, SlotCapacity(3), 0.2 if silent else 30.0)
    finally:
        peer.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert raised.value.service == "arm"
    return raised.value, peer.calls


def refusal(name: str, **parameters: Any) -> bytes:
    return json.dumps({"error": name, "parameters": parameters}).encode() + b"\0"


def reply(**parameters: Any) -> bytes:
    return json.dumps({"parameters": parameters}).encode() + b"\0"


IDENTITY = {"epoch": 1, "generation": 1, "channel": 1}
NAMES = {"requests": "/a", "replies": "/b", "request_bell": "/c", "reply_bell": "/d"}


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (refusal(f"{INTERFACE}.ProtocolMismatch", wire_version=99), ProtocolMismatch, "wire version 99"),
        (refusal(f"{INTERFACE}.Refused", reason="evicted", message="banned"), ClientEvicted, "banned"),
        (refusal(f"{INTERFACE}.Refused", reason="too_large", message="big"), ObservationTooLarge, "size: big"),
        (refusal(f"{INTERFACE}.Refused", reason="full", message="full"), ServiceUnavailable, "no channel: full"),
        (refusal(f"{INTERFACE}.Stopping"), ServiceUnavailable, "is stopping"),
        (refusal("org.varlink.service.PermissionDenied", setting="clients"), ServiceUnavailable, "setting clients"),
        (refusal("org.example.Other"), ServiceUnavailable, "refused: org.example.Other"),
        (b"", ServiceUnavailable, "closed the connection"),
        (b"not json\0", ProtocolMismatch, "Attach an answer that cannot be read"),
        (b'{"parameters":5}\0', ProtocolMismatch, "Attach an answer that cannot be read"),
        (reply(), ProtocolMismatch, "its channel"),
        (reply(channel_info=5), ProtocolMismatch, "its channel"),
        (reply(channel_info={"identity": IDENTITY}), ProtocolMismatch, "its channel"),
        (
            reply(channel_info={"identity": {**IDENTITY, "epoch": "1"}, "names": None}),
            ProtocolMismatch,
            "numbers and names",
        ),
        (
            reply(channel_info={"identity": IDENTITY, "names": {**NAMES, "requests": "/../x"}}),
            ProtocolMismatch,
            "numbers and names",
        ),
        (reply(channel_info={"identity": IDENTITY, "names": None}), ProtocolMismatch, "0 descriptors"),
    ],
)
def test_each_answer_to_attach_is_a_typed_error(
    directory: Path, answer: bytes, kind: type[ShmServeError], text: str
) -> None:
    error, _ = attach(directory, answer)

    assert type(error) is kind
    assert text in str(error)


def test_the_call_names_the_wire_version_and_the_capacity(directory: Path) -> None:
    _, (call,) = attach(directory, b"")

    assert call["method"] == f"{INTERFACE}.Attach"
    assert call["parameters"]["wire_version"] == WIRE_VERSION
    assert call["parameters"]["wanted"] == vars(SlotCapacity(3))


def test_a_peer_that_does_not_answer_is_unavailable(directory: Path) -> None:
    error, _ = attach(directory, b"", silent=True)

    assert type(error) is ServiceUnavailable and "did not answer Attach in time" in str(error)


def no_socket(path: Path) -> None: ...


def unused_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unused:
        unused.bind(str(path))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (no_socket, "no daemon serves 'arm'"),
        (unused_socket, "no daemon serves 'arm'"),
        (Path.touch, "no daemon serves"),
    ],
)
def test_a_socket_that_nothing_serves_is_unavailable(
    directory: Path, make: Callable[[Path], object], text: str
) -> None:
    make(directory / "client.sock")

    with pytest.raises(ServiceUnavailable, match=text):
        Connection.open("arm", directory, SlotCapacity(3), 5.0)
