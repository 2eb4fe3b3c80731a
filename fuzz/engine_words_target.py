"""Fuzz target for an engine's messages to its supervisor: messages, or InvalidMessage, after which the engine is killed.

Engines run the model's own code, which can write to any descriptor of its process.
"""

from __future__ import annotations

import json

from fuzz.target import Target
from shmserve.daemon.ipc.control import take_messages
from shmserve.daemon.ipc.messages import (
    FROM_ENGINE,
    Broken,
    Failed,
    InvalidMessage,
    Loading,
    Paused,
    Ready,
    Serving,
    Warming,
    encode,
)


def run(data: bytes) -> None:
    received = bytearray(data)
    try:
        messages = take_messages(received, FROM_ENGINE)
    except InvalidMessage:
        return
    assert b"\0" not in received
    for message, fds in messages:
        again, _ = take_messages(bytearray(encode(message, fds)), FROM_ENGINE)[0]
        assert json.dumps(vars(again)) == json.dumps(vars(message))


_READY = Ready(
    version="00",
    name="arm",
    device="cpu",
    request_bytes=64,
    reply_bytes=64,
    infer_ms=0.4,
    in_place=False,
    max_batch=1,
    stateful=False,
    real_time_chunking=False,
    contract={"observation": []},
    observation=[],
    action=None,
    metadata={},
    gpu=None,
    backend="native",
    memory_locked=None,
    priority=None,
)


def seeds() -> list[bytes]:
    return [
        encode(Loading("0123456789abcdef")),
        encode(Warming()) + encode(_READY),
        encode(Failed(stage="load", error="ValueError", message="no weights")),
        encode(Broken(1, 3, 7, reason="published counter 9 after 1", blame=True, detail=None)),
        encode(Paused(((0, 12),))) + encode(Serving()),
        b'{"event":"Ready"',
    ]


WORDS = (b"\0", b'{"event":', b'"fds":0', b"null", b"[]", b"1", b'"', b"[" * 2000, b"NaN", b"\xff")
TARGET = Target(run, seeds, WORDS)
