"""A daemon that lies: its channels are real, and what it writes to them and says of them is not."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.observations import TREES
from shmserve.codec import DoesNotFit, Encoder, SlotMemory
from shmserve.directories import CLIENT_SOCKET
from shmserve.flatten import flatten
from shmserve.layout import COUNTER_OFFSET, REPLY, WORD, Geometry
from shmserve.metadata import Leaf, dump
from shmserve.pipe_doorbell import PipeRinger
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity, Segment
from shmserve.strict_json import encode_json
from shmserve.varlink_socket import send_part

GEOMETRY = Geometry(slots=4, metadata_bytes=4096, payload_bytes=8192)
_EDGES = [
    0,
    1,
    2,
    63,
    64,
    100,
    4096,
    8192,
    8193,
    65536,
    1 << 32,
    (1 << 32) + 1,
    1 << 48,
    1 << 62,
    1 << 63,
    (1 << 64) - 1,
]
#: An array in GPU memory, which only a request may have.
_ON_DEVICE = dump({"a": Leaf("device", "<f4", 2), "b": Leaf("str", "|u1", 1)})
_METADATA = [*(flatten(tree, "tree").metadata for tree in TREES), _ON_DEVICE]


def _honest() -> list[tuple[bytes, bytes, int]]:
    """Metadata, payload and number of replies that are what they say."""
    encoder, answers = Encoder(name="action"), [(_ON_DEVICE, struct.pack("=3Q", 3, 4, 0).ljust(64, b"\0"), 999)]
    for tree in (*TREES, {"a": np.zeros((3, 4), np.float32)}):
        slot = SlotMemory(np.zeros(4096, np.uint8), np.zeros(8192, np.uint8))
        with contextlib.suppress(DoesNotFit):
            schema, metadata, payload, _ = encoder.encode(tree, slot)
            answers.append((slot.metadata[:metadata].tobytes(), slot.payload[:payload].tobytes(), 1000 + schema))
    return answers


_HONEST = _honest()


def _model() -> dict[str, Any]:
    entries = {"a": {"dtype": "float32", "shape": [3, 4]}}
    return {
        "name": "liar",
        "version": "0" * 16,
        "stateful": False,
        "contract": {"observation": entries, "action": entries},
    }


class LyingDaemon:
    """Serves any number of clients, each in threads of its own, until `close`. `lies` is how often an answer is changed."""

    def __init__(self, runtime_dir: Path, name: str, seed: int, lies: float) -> None:
        self.random = random.Random(seed)
        self.lies = lies
        #: The answer to CheckRobot.
        self.checked: dict[str, Any] = {"parameters": {"versions": ["0" * 16, "8"]}}
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        folder = runtime_dir / name
        folder.mkdir(parents=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(folder / CLIENT_SOCKET))
        self._listener.listen(64)
        self._listener.settimeout(0.05)
        self._start(self._accept)

    def close(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, run: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                self._start(self._serve, connection)

    # The socket

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(0.05)
        sealed, ended = SealedChannelFds(), threading.Event()
        generation = 0
        try:
            while not self._ending.is_set():
                try:
                    call = connection.recv(65536)
                except TimeoutError:
                    continue
                if not call:
                    return
                generation += 1
                identity = Identity(7, 1, generation)
                described, checked = b"Describe" in call, b"CheckRobot" in call
                descriptors = [] if described or checked else sealed.create(identity, GEOMETRY, GEOMETRY)
                info = {"identity": vars(identity), "names": None}
                answer = (
                    {"service": "t", "state": "ready", "epoch": 7, "model": _model()}
                    if described
                    else {"channel_info": info, "trusted": True, "state": "ready"}
                )
                if descriptors:
                    ended.set()
                    ended = threading.Event()
                    self._start(self._write, [os.dup(fd) for fd in sealed.engine_ends()], ended)
                message = self._changed(encode_json(self.checked if checked else {"parameters": answer}))
                given = descriptors if self.random.random() > self.lies / 4 else descriptors[:1]
                send_part(connection, memoryview(message + b"\0"), given)
                for descriptor in descriptors:
                    os.close(descriptor)
        except OSError:
            pass
        finally:
            ended.set()
            sealed.close()
            connection.close()

    def _changed(self, message: bytes) -> bytes:
        if self.random.random() > self.lies:
            return message
        data = bytearray(message)
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(data))
            choice = self.random.randrange(4)
            if choice == 0:
                data[at] = self.random.choice(b'{}[]",:0129-eE.\\unt\0\xff ')
            elif choice == 1:
                del data[at : at + self.random.randrange(1, 20)]
            elif choice == 2:
                data[at:at] = self.random.choice([b"9" * 25, b'"a":', b"[" * 40, b"\\ud800", b"null", b"-1"])
            else:
                data[at:at] = data[: self.random.randrange(1, 60)]
        return bytes(data[:60_000]) or b" "

    # The channel

    def _write(self, ends: list[int], ended: threading.Event) -> None:
        """Answer every request with whatever, and scribble over the replies all the time."""
        requests, replies, listener, ringer = ends
        rng = random.Random(self.random.random())
        published = Segment.from_descriptor(requests, writable=False)
        segment = Segment.from_descriptor(replies, writable=True)
        bell = PipeRinger(ringer)
        try:
            words, memory = segment.words, segment.memory
            while not (self._ending.is_set() or ended.wait(0.0002)):
                sequence = published.words[COUNTER_OFFSET // WORD]
                slot = sequence % 64
                if sequence and slot < GEOMETRY.slots:
                    self._answer(rng, memory, words, sequence, slot)
                    words[COUNTER_OFFSET // WORD] = (words[COUNTER_OFFSET // WORD] + 1) % (1 << 64)
                    bell.ring()
                for _ in range(20):
                    slot = rng.randrange(GEOMETRY.slots)
                    front = GEOMETRY.payload_offset(slot) // WORD
                    words[front + rng.randrange(12)] = self._number(rng)
                    words[GEOMETRY.slot_offset(slot) // WORD + rng.randrange(1, 6)] = self._number(rng)
        finally:
            published.close()
            segment.close()
            bell.close()
            for descriptor in (requests, replies, listener):
                os.close(descriptor)

    @staticmethod
    def _number(rng: random.Random) -> int:
        return rng.choice(_EDGES) if rng.random() < 0.5 else rng.randrange(300)

    def _answer(self, rng: random.Random, memory: memoryview, words: memoryview, sequence: int, slot: int) -> None:
        head, metadata_at = GEOMETRY.slot_offset(slot), GEOMETRY.metadata_offset(slot)
        front, names = GEOMETRY.payload_offset(slot) // WORD, REPLY.names
        metadata = bytearray(rng.choice(_METADATA)[:4096])
        if rng.random() < 0.3:
            metadata[rng.randrange(len(metadata))] = rng.randrange(256)
        memory[metadata_at : metadata_at + len(metadata)] = bytes(metadata)
        if rng.random() < 0.5:
            honest, payload, schema = rng.choice(_HONEST)
            memory[metadata_at : metadata_at + len(honest)] = honest
            memory[front * WORD : front * WORD + len(payload)] = payload
            for name, value in zip(names[1:6], (0, 0, schema, len(honest), len(payload)), strict=True):
                words[head // WORD + names.index(name)] = value
            words[head // WORD] = sequence
            return
        for index in range(12):
            words[front + index] = rng.choice((1, 2, 3, 4, 8, self._number(rng)))
        values = {
            "status": 0 if rng.random() < 0.8 else rng.randrange(12),
            "flags": rng.choice((0, 0, 0, 16, 1, rng.randrange(64))),
            "schema": rng.randrange(40) if rng.random() < 0.7 else self._number(rng),
            "metadata_bytes": len(metadata) if rng.random() < 0.9 else self._number(rng),
            "payload_bytes": rng.choice((64 + rng.randrange(200), rng.randrange(400), self._number(rng))),
        }
        for name, value in values.items():
            words[head // WORD + names.index(name)] = value
        words[head // WORD] = sequence if rng.random() < 0.95 else self._number(rng)


@contextlib.contextmanager
def lying(runtime_dir: Path, name: str, *, seed: int = 1, lies: float = 0.3) -> Iterator[LyingDaemon]:
    """A daemon that lies, for a block."""
    daemon = LyingDaemon(runtime_dir, name, seed, lies)
    try:
        yield daemon
    finally:
        daemon.close()
