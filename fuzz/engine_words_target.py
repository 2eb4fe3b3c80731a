"""Fuzz target for an engine's messages to its supervisor: messages, or ValueError, after which the engine is killed.

Engines run the model's own code, which can write to any descriptor of its process.
"""

from __future__ import annotations

from fuzz.target import Target
from shmserve.daemon.ipc.control import encode, take_messages


def run(data: bytes) -> None:
    received = bytearray(data)
    try:
        messages = take_messages(received)
    except ValueError:
        return
    assert b"\0" not in received
    for message in messages:
        assert type(message) is dict and type(message["event"]) is str


def seeds() -> list[bytes]:
    return [
        encode("loading", version="0123456789abcdef"),
        encode("warming")
        + encode("ready", version="00", name="arm", infer_ms=0.4, contract={"inputs": []}, metadata={}),
        encode("failed", stage="load", error="ValueError", message="no weights"),
        encode("broken", channel=3, generation=7, reason="published counter 9 after 1"),
        encode("paused", held=[[0, 12]]) + encode("serving"),
        b'{"event":"ready"',
    ]


WORDS = (b"\0", b'{"event":', b"null", b"[]", b"1", b'"', b"[" * 2000, b"NaN", b"\xff")
TARGET = Target(run, seeds, WORDS)
