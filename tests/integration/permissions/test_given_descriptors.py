"""Descriptors of another process that are not what they should be: refused before anything is mapped, on either side."""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shmserve.channel import ChannelInfo, EngineChannel
from shmserve.client import ShmClient
from shmserve.daemon.ipc.stats import STATS_BYTES, Stats
from shmserve.directories import CLIENT_SOCKET
from shmserve.errors import ProtocolMismatch, ShmServeError
from shmserve.layout import COUNTER_OFFSET, Geometry, header_bytes
from shmserve.pipe_doorbell import PipeListener, PipeRinger, create_pipe
from shmserve.record_ring import RecordRingBroken, RecordRingReader, check_record_ring
from shmserve.sealed_memory import SEALS
from shmserve.segment import Identity

_GEOMETRY = Geometry(4, 4096, 65536)
_IDENTITY = Identity(1, 0, 1)
_MFD_HUGETLB = 0x4
_F_SEAL_FUTURE_WRITE = 0x10


def memory(*, seals: int = SEALS, size: int = _GEOMETRY.segment_bytes, flags: int = 0) -> int:
    """A segment as a daemon makes it, or nearly so."""
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(descriptor, size)
    if not flags:
        os.pwrite(descriptor, header_bytes(_GEOMETRY, epoch=1, generation=1, channel=0)[:size], 0)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def read_only(descriptor: int) -> int:
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    os.close(descriptor)
    return again


def one_end(place: int) -> int:
    ends = create_pipe()
    os.close(ends[1 - place])
    return ends[place]


#: What is given in the place of memory, and what is said of it.
MEMORIES: dict[str, tuple[Callable[[], int], str]] = {
    "without seals": (lambda: memory(seals=0), "is not sealed: its sender could shrink it"),
    "sealed against growing": (lambda: memory(seals=fcntl.F_SEAL_GROW), "is not sealed: its sender could shrink it"),
    "on a disk": (lambda: os.open(__file__, os.O_RDONLY), "is not a memfd"),
    "a pipe": (lambda: one_end(0), "is not a memfd"),
    "a socket": (lambda: socket.socket().detach(), "is not a memfd"),
    "a directory": (lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY), "is not a memfd"),
    "smaller than its header": (lambda: memory(size=8), "not a segment: 8 bytes"),
    "smaller than its header says": (lambda: memory(size=4096), "its header says"),
}
with contextlib.suppress(OSError):  # a kernel without
    os.close(memory(size=2 << 20, flags=_MFD_HUGETLB))
    MEMORIES["of huge pages"] = (lambda: memory(size=2 << 20, flags=_MFD_HUGETLB), "consists of huge pages")
#: In the place of memory that is to be written.
WRITABLE = {
    "open for reading": (lambda: read_only(memory()), "is not open for writing"),
    "sealed against writing": (lambda: memory(seals=SEALS | _F_SEAL_FUTURE_WRITE), "is sealed against writing"),
}
#: In the place of a doorbell, and what both sides say.
BELLS: dict[str, Callable[[], int]] = {
    "memory": memory,
    "a socket": lambda: socket.socket().detach(),
    "a terminal's device": lambda: os.open("/dev/null", os.O_RDWR),
}
#: (which of the four, what it is): what is said. For the client: requests, replies, a pipe to ring, a pipe to listen at.
GIVEN: dict[tuple[int, str], tuple[Callable[[], int], str]] = {
    **{(place, name): found for place in (0, 1) for name, found in MEMORIES.items()},
    **{(0, name): found for name, found in WRITABLE.items()},
    **{(2, name): (made, "a doorbell is the writing end of a pipe") for name, made in BELLS.items()},
    **{(3, name): (made, "a doorbell is the reading end of a pipe") for name, made in BELLS.items()},
    (2, "the other end"): (lambda: one_end(0), "a doorbell is the writing end of a pipe"),
    (3, "the other end"): (lambda: one_end(1), "a doorbell is the reading end of a pipe"),
}


#: How a client begins.
REFUSED = "ProtocolMismatch: the channel that the daemon of 't' gave is refused: "


class FakeDaemon:
    """Answers one Attach with these descriptors, in this process, to a client in a child that it forks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "t").mkdir()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "t" / CLIENT_SOCKET))
        self._listener.listen()

    def ask(self) -> int:
        """The pid of a client that asks, and where it says how that went."""
        self.said, said = os.pipe()
        if (pid := os.fork()) == 0:
            status = 1
            try:
                signal.alarm(60)
                self._listener.close()
                gc.freeze()  # what earlier tests left, which takes long to look through
                before = os.listdir("/proc/self/fd")
                client = ShmClient("t", runtime_dir=self._folder, timeout=20, max_retries=0, check_contract=False)
                try:
                    client.infer({"x": np.zeros(4, np.float32)})
                except ShmServeError as error:
                    found = f"{type(error).__name__}: {error}"
                client.close()
                del client
                gc.collect()
                os.write(said, f"{found}\n{len(os.listdir('/proc/self/fd')) - len(before)} left".encode())
                status = 0
            finally:
                os._exit(status)
        os.close(said)
        return pid

    def attach(self, fds: list[int]) -> None:
        self._connection, _ = self._listener.accept()
        channel_info = {"identity": vars(_IDENTITY), "names": None}
        self._answer({"channel_info": channel_info, "trusted": False, "state": "ready"}, fds)

    def describe(self) -> None:
        self._answer({"service": "t", "state": "ready", "epoch": 1, "model": None})

    def _answer(self, parameters: object, fds: list[int] | None = None) -> None:
        self._connection.recv(1 << 16)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._connection.sendmsg([json.dumps({"parameters": parameters}).encode() + b"\0"], rights)

    def ended(self, pid: int) -> tuple[int, str, str]:
        """Its exit status (negative: a signal), what it got, and how many descriptors it has not given back."""
        with open(self.said) as said:
            lines = said.read().partition("\n")
        self._connection.close()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), lines[0], lines[2]

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon(tmp_path)
    yield daemon
    daemon.close()


def channel_ends() -> list[int]:
    """What a client gets: requests, replies, a pipe to ring, a pipe to listen at."""
    return [memory(), read_only(memory()), one_end(1), one_end(0)]


def close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_daemon_that_shrinks_mapped_memory_does_not_kill_the_client(daemon: FakeDaemon) -> None:
    replies = memory(seals=0)
    given = channel_ends()
    os.close(given[1])
    given[1] = os.open(f"/proc/self/fd/{replies}", os.O_RDONLY)
    pid = daemon.ask()

    daemon.attach(given)
    try:
        daemon.describe()  # a client that took it goes on
        while os.pread(given[0], 8, COUNTER_OFFSET) == bytes(8):
            pass
        os.ftruncate(replies, 0)
    except ConnectionError:
        pass

    status, said, left = daemon.ended(pid)
    assert (status, left) == (0, "0 left")
    assert said.startswith(f"{REFUSED}the memory of a channel is not sealed: its sender could shrink it")
    close_all([*given, replies])


def test_a_client_refuses_every_unexpected_descriptor(daemon: FakeDaemon) -> None:
    for (place, name), (made, said) in GIVEN.items():
        given = channel_ends()
        os.close(given[place])
        given[place] = made()
        pid = daemon.ask()

        daemon.attach(given)
        status, found, left = daemon.ended(pid)

        assert (status, left, found.startswith(REFUSED)) == (0, "0 left", True), (place, name, found)
        assert said in found, (place, name, found)
        close_all(given)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_client_that_is_given_too_few_descriptors_says_so(daemon: FakeDaemon, count: int) -> None:
    given = channel_ends()
    pid = daemon.ask()

    daemon.attach(given[:count])

    said = f"{REFUSED}{count} descriptors came with a channel of transport 'sealed', not 4"
    assert daemon.ended(pid) == (0, said, "0 left")
    close_all(given)


@pytest.mark.usefixtures("no_descriptor_is_left")
def test_an_engine_refuses_every_unexpected_descriptor() -> None:
    # It maps the replies to write and the requests to read, and listens where its client rings.
    swapped = {(place ^ 1, name): found for (place, name), found in GIVEN.items()}
    for (place, _), (made, said) in swapped.items():
        given = [read_only(memory()), memory(), one_end(0), one_end(1)]
        os.close(given[place])
        given[place] = made()

        with pytest.raises(ProtocolMismatch, match=said):
            EngineChannel(ChannelInfo(_IDENTITY, None), given)
    with pytest.raises(ProtocolMismatch, match="1 descriptors came with a channel"):
        EngineChannel(ChannelInfo(_IDENTITY, None), [memory()])


def test_a_doorbell_does_not_block_when_the_pipe_is_full() -> None:
    listener, pipe_state = os.pipe()
    ring, listen = PipeRinger(pipe_state), PipeListener(listener)

    assert not listen.try_take()
    for _ in range(100_000):  # more than a pipe holds
        ring.ring()
    assert listen.try_take()
    ring.close()
    listen.close()


@pytest.mark.usefixtures("no_descriptor_is_left")
def test_the_stats_of_an_engine_are_mapped_only_if_sealed_against_shrinking() -> None:
    for descriptor, said in (
        (memory(seals=0, size=STATS_BYTES), "is not sealed"),
        (memory(size=STATS_BYTES - 1), f"has {STATS_BYTES - 1} of {STATS_BYTES} bytes"),
        (one_end(0), "is not a memfd"),
    ):
        with pytest.raises(ProtocolMismatch, match=said):
            Stats(descriptor)
        os.close(descriptor)


@pytest.mark.usefixtures("no_descriptor_is_left")
def test_a_record_ring_that_an_engine_cannot_write_to_is_refused() -> None:
    record_ring = RecordRingReader(4096)
    reading = os.open(f"/proc/self/fd/{record_ring.descriptor}", os.O_RDONLY)
    with pytest.raises(RecordRingBroken, match="the record ring is not open for writing"):
        check_record_ring(reading)
    os.close(reading)
    record_ring.close()
