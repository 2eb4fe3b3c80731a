"""Does one kind of harm to a service for a while, as another user: `attacks NAME RUNTIME_DIR ATTACK SECONDS`.

Ends with 0 and says what it did, unless it was let do what nobody should be.
"""

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shmserve.client import ServiceUnavailable, ShmClient, ShmServeError
from shmserve.client.capacity import SlotCapacity
from shmserve.client.connection import Connection
from shmserve.codec import Encoder
from shmserve.directories import CLIENT_SOCKET
from shmserve.layout import sequence_of
from shmserve.metadata import Leaf, dump
from shmserve.protocol import WIRE_VERSION, Kind
from shmserve.ring import RequestHead
from shmserve.schema import Schema
from shmserve.varlink import VarlinkError
from shmserve.varlink_connection import VarlinkConnection
from tests.support.stranger_process import UID, become

_LANE_FDS = 4
_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_F_SETPIPE_SZ = 1031


class Target:
    """The service, and until when to harm it."""

    def __init__(self, name: str, directory: Path, seconds: float) -> None:
        self.name = name
        self.directory = directory
        self.until_s = time.monotonic() + seconds

    def goes_on(self) -> bool:
        return time.monotonic() < self.until_s

    def attach(self) -> Connection:
        return Connection.open(self.name, self.directory, SlotCapacity(4), 30.0)

    def try_attach(self) -> Connection | None:
        """None if this user comes too often; that is told only after a moment."""
        try:
            return self.attach()
        except ServiceUnavailable as error:
            assert "too often" in str(error), error
            return None

    def connect(self) -> VarlinkConnection:
        return VarlinkConnection.connect(self.directory / CLIENT_SOCKET, 30.0, accept_fds=_LANE_FDS)

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(self.directory / CLIENT_SOCKET))  # waits for a place; with a timeout it fails
        sock.settimeout(30.0)
        return sock


def mutate(target: Target) -> str:
    """Publish well-formed requests while words of the heads, the counter and the metadata turn into anything."""
    chance = random.Random(7)
    anything = [0, 1, 2, 5, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1]
    published = mutated = attached = 0
    while target.goes_on():
        attachment = target.try_attach()
        if attachment is None:
            continue
        attached += 1
        requests = attachment.channel.requests
        words, geometry = requests.segment.words, requests.segment.geometry
        places = [requests.segment.counter_index]
        for slot in range(geometry.slots):
            first = geometry.slot_offset(slot) // 8
            places += range(first, first + 16)
            places += range(geometry.metadata_offset(slot) // 8, geometry.metadata_offset(slot) // 8 + 8)
        encoder = Encoder()
        number = 0
        while target.goes_on() and not attachment.is_peer_closed():
            number += 1
            sequence = sequence_of(number, number % requests.slots)
            encoded = encoder.encode({"do": "echo", "value": np.arange(50)}, requests.memory(sequence))
            head = RequestHead(sequence, Kind.INFER, 0, 0, 0, 0, time.monotonic_ns(), *encoded[:3], cancelled=0)
            if chance.random() < 0.5:
                words[chance.choice(places)] = chance.choice(anything)  # between encoding and publishing
                mutated += 1
            requests.publish(tuple(head))
            attachment.channel.request_bell.ring()
            published += 1
            for _ in range(chance.randrange(20)):  # while the engine reads
                words[chance.choice(places)] = chance.choice((*anything, chance.getrandbits(64)))
                mutated += 1
        attachment.close()
    return f"{attached} channels, {published} requests, {mutated} words changed"


def cut_off(target: Target) -> str:
    """Try everything that takes memory away from under the engine, or writes where only the engine may."""
    rounds = 0
    libc = ctypes.CDLL(None, use_errno=True)
    while target.goes_on():
        with target.connect() as connection:
            parameters = {"wire_version": WIRE_VERSION, "wanted": vars(SlotCapacity(2))}
            try:
                reply = connection.call("io.shmserve.Client.Attach", parameters, timeout_s=30.0)
            except VarlinkError as error:
                assert error.parameters["reason"] == "too_often", error
                continue
            requests, replies, ring, listen = reply.fds
            size = os.fstat(requests).st_size
            for descriptor in (requests, replies):
                for length in (0, 1, 4096, size - 1, size + 4096):
                    with must_fail():
                        os.ftruncate(descriptor, length)
                with must_fail():
                    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
                with must_fail():
                    os.fchmod(descriptor, 0o777)
            with must_fail():
                os.pwrite(replies, b"x", 0)
            with must_fail():
                mmap.mmap(replies, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            for descriptor, flags in ((replies, os.O_RDWR), (ring, os.O_RDONLY), (listen, os.O_WRONLY)):
                with must_fail():
                    os.open(f"/proc/self/fd/{descriptor}", flags | os.O_NONBLOCK)
            # This is allowed, and leaves zeros behind.
            libc.fallocate(requests, _PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(size))
            with contextlib.suppress(BrokenPipeError):  # the engine may have seen a channel without a header by now
                os.write(ring, b"\0")
            for descriptor in reply.fds:
                os.close(descriptor)
        rounds += 1
    return f"{rounds} channels"


@contextlib.contextmanager
def must_fail() -> Iterator[None]:
    try:
        yield
    except OSError:
        return
    raise AssertionError("what only the engine may do was done")


def ring(target: Target) -> str:
    """Ring without requests as fast as the pipe takes it, through every size of the pipe, with and without O_NONBLOCK."""
    rings = 0
    with target.connect() as connection:
        parameters = {"wire_version": WIRE_VERSION, "wanted": vars(SlotCapacity(1))}
        while True:
            with contextlib.suppress(VarlinkError):
                reply = connection.call("io.shmserve.Client.Attach", parameters, timeout_s=30.0)
                break
        bell, listen = reply.fds[2:]
        many = bytes(65536)
        while target.goes_on():
            for size in (4096, 65536, 1 << 20):
                with contextlib.suppress(OSError):
                    fcntl.fcntl(bell, _F_SETPIPE_SZ, size)
                for _ in range(50):
                    with contextlib.suppress(BlockingIOError):
                        rings += os.write(bell, many)
            fcntl.fcntl(listen, fcntl.F_SETFL, 0)  # ours alone: the engine's end stays as it is
        os.close(listen)  # nobody listens to the replies any more
        with contextlib.suppress(BlockingIOError):
            os.write(bell, many)
        os.close(bell)
        time.sleep(0.2)
    return f"{rings} rings"


def pass_descriptors(target: Target) -> str:
    """Send descriptors that nobody asked for: too many, of every kind, closed at once, with and without a message."""
    sent = 0
    kinds = [os.open("/dev/null", os.O_RDWR), os.memfd_create("x"), *os.pipe(), socket.socket().detach()]
    call = b'{"method":"io.shmserve.Client.Describe"}\0'
    while target.goes_on():
        for data, count in ((call, 1), (call, 250), (b"{", 250), (b"\0", 100), (call * 3, 50)):
            with target.raw() as sock, contextlib.suppress(OSError):
                for _ in range(10):
                    fds = [random.choice(kinds) for _ in range(count)]
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{count}i", *fds))]
                    sock.sendmsg([data], rights)
                    sent += count
    return f"{sent} descriptors"


def crowd(target: Target) -> str:
    """Connect without a word, attach as often as allowed, and hold on to all of it."""
    held: list[socket.socket] = []
    attached: list[Connection] = []
    refused = connections = 0
    while target.goes_on():
        with contextlib.suppress(OSError):
            held.append(target.raw())
            connections += 1
        try:
            attached.append(target.attach())
        except (ShmServeError, OSError):
            refused += 1
        if len(held) > 500:
            held.pop(0).close()
    assert refused > 0, "nothing ever said no"
    return f"{connections} connections, {len(attached)} channels, {refused} refusals"


def _statement(robot: dict[str, Any]) -> bytes:
    call = {"method": "io.shmserve.Client.CheckRobot", "parameters": {"robot": robot}}
    return json.dumps(call, separators=(",", ":")).encode() + b"\0"


_STATEMENTS: list[dict[str, Any]] = [
    {
        "action": {str(number): [1] for number in range(1024)},
        "observation": {str(number): [1] for number in range(1024)},
    },
    {"action": {str(number): [1] for number in range(4000)}},
    {"observation": {name: {"names": [f"{number:x}" for number in range(4096)]} for name in "ab"}},
    {"observation": {name: {"units": ["x"] * 4000} for name in "abc"}},
    {"action": {"\x01" * 9000: [1]}},
    {"x" * 60_000: 1},
]


def babble(target: Target) -> str:
    """Say a byte at a time, far too much, nothing that makes sense, and never listen to the answers."""
    attach = {"method": "io.shmserve.Client.Attach", "parameters": {"wire_version": WIRE_VERSION}}
    nonsense = [
        b"x" * 300_000,
        b"\0" * 50_000,
        b"[" * 60_000 + b"\0",
        b'{"method":"' + b"A" * 60_000 + b'"}\0',
        b'{"method":"io.shmserve.Client.\\u001b[31m\\nroot"}\0' * 1000,
        json.dumps({**attach, "parameters": {"wire_version": 1 << 60}}).encode() + b"\0",
        json.dumps({**attach, "parameters": {"wire_version": WIRE_VERSION, "wanted": {"slots": -1}}}).encode() + b"\0",
        b'{"method":"io.shmserve.Client.Describe","more":true}\0' * 2000,
        b'\xff\xfe{"method"\0',
        *map(_statement, _STATEMENTS),
    ]
    said = 0
    slow = [target.raw() for _ in range(8)]
    for sock in slow:
        sock.settimeout(0)
    while target.goes_on():
        for data in nonsense:
            with target.raw() as sock, contextlib.suppress(OSError):
                sock.settimeout(0.05)
                sock.sendall(data)
                said += len(data)
        for sock in slow:
            with contextlib.suppress(OSError):
                sock.send(b"{")
    return f"{said} bytes"


def resize(target: Target) -> str:
    """Ask for another generation of the channel again and again, small and as large as is given."""
    resized = refused = 0
    while target.goes_on():
        attachment = target.try_attach()
        if attachment is None:
            continue
        with contextlib.suppress(ShmServeError):
            while target.goes_on():
                wanted = SlotCapacity(4)
                wanted.request_bytes = random.choice((1, 1 << 16, 1 << 22, 1 << 40))
                try:
                    parameters = {"wanted": vars(wanted), "published": 0, "deferred": []}
                    reply = attachment._control.call("io.shmserve.Client.Resize", parameters, timeout_s=30.0)
                except VarlinkError:
                    refused += 1
                    continue
                resized += 1
                for descriptor in reply.fds:
                    os.close(descriptor)
        attachment.close()
    return f"{resized} generations, {refused} refusals"


def flood(target: Target) -> str:
    """Ask as fast as answers come, four requests at a time."""
    answered = 0
    with ShmClient(target.name, runtime_dir=target.directory.parent, timeout=30, slots=4, max_retries=20) as client:
        out = [client.submit({"do": "echo", "value": number}) for number in range(4)]
        while target.goes_on():
            with contextlib.suppress(ShmServeError):
                out.pop(0).result()
                answered += 1
            out.append(client.submit({"do": "echo", "value": answered}))
    return f"{answered} answers"


def churn(target: Target) -> str:
    """Publish requests of ever new structures, as large as the metadata of a slot allows, one after the other."""
    attachment = target.attach()
    requests = attachment.channel.requests
    room = requests.segment.geometry.metadata_bytes
    leaf = Leaf("array", "|u1", 0)
    leaves = 16
    while leaves <= 1000 and len(dump([leaf] * (2 * leaves))) <= room:
        leaves *= 2
    metadata = dump([leaf] * leaves)
    payload_bytes = Schema(metadata).reader.payload_bytes([])
    number = 0
    while target.goes_on() and not attachment.is_peer_closed():
        number += 1
        sequence = sequence_of(number, number % requests.slots)
        requests.memory(sequence).metadata[: len(metadata)] = np.frombuffer(metadata, np.uint8)
        lengths = (1000 + number, len(metadata), payload_bytes)
        requests.publish(
            tuple(RequestHead(sequence, Kind.INFER, 0, 0, 0, 0, time.monotonic_ns(), *lengths, cancelled=0))
        )
        attachment.channel.request_bell.ring()
        # Its slots are to be answered before they are used again, or it would be evicted.
        oldest = number - requests.slots + 1
        while oldest > 0 and target.goes_on() and not attachment.is_peer_closed():
            if attachment.channel.replies.answered(sequence_of(oldest, oldest % requests.slots)):
                break
            time.sleep(0.0002)
    lost = attachment.is_peer_closed()
    attachment.close()
    assert not lost, "it kept to the protocol and was evicted"
    return f"{number} structures of {leaves} leaves"


def burn(target: Target) -> str:
    """Use a processor and nothing of the service: what any neighbour costs."""
    rounds = 0
    while target.goes_on():
        rounds += 1
    return f"{rounds} rounds"


def main() -> None:
    name, runtime_dir, attack, seconds = sys.argv[1:5]
    become(UID)
    target = Target(name, Path(runtime_dir) / name, float(seconds))
    print("began", flush=True)
    print(globals()[attack](target), flush=True)


if __name__ == "__main__":
    main()
