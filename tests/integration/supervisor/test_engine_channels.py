"""What the supervisor says of channels, as an engine carries it out: its real messages, a real control socket, real segments."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import pytest
import torch

from shmserve.channel import ChannelInfo, ClientChannel
from shmserve.codec import Encoder
from shmserve.daemon.engine.engine import Engine
from shmserve.daemon.engine.loop.channel_setup import TURN_NS
from shmserve.daemon.ipc.control import ControlSocket, take_messages
from shmserve.daemon.ipc.messages import (
    FROM_ENGINE,
    Attach,
    Broken,
    Detach,
    FirstObservation,
    Pause,
    Paused,
    Serve,
    Serving,
    Stop,
    SupervisorMessage,
    encode,
)
from shmserve.daemon.ipc.stats import Counter, Stats, create_stats_memory
from shmserve.layout import Geometry, sequence_of
from shmserve.protocol import Kind
from shmserve.ring import RequestHead
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity
from tests.support.daemon_process import POLICIES
from tests.support.messages import load

_SMALL = Geometry(slots=8, metadata_bytes=4096, payload_bytes=4096)
#: Its memory comes in 33 pieces.
_LARGE = Geometry(slots=8, metadata_bytes=4096, payload_bytes=512 << 10)


@final
class Client:
    """A client's end of a channel, and the supervisor's."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sealed = SealedChannelFds()
        self._generation = 0
        self._encoder = Encoder()
        self.channel: ClientChannel | None = None

    def grow(self, geometry: Geometry) -> Attach:
        """Another generation, the first one, too; what the supervisor says of it."""
        self._generation += 1
        channel_info = ChannelInfo(Identity(1, self.number, self._generation), None)
        before, self.channel = self.channel, None
        given = self.sealed.create(channel_info.identity, geometry, _SMALL)
        self.channel = ClientChannel(channel_info, given, before)
        if before is not None:
            before.close()
        return Attach(channel_info, trusted=False, uid=0, deferred=(), suspicion=None)

    def publish(self, count: int) -> list[int]:
        """So many requests, without a ring; their sequences."""
        assert self.channel is not None
        requests = self.channel.requests
        sequences = [sequence_of(number, number % requests.slots) for number in range(1, count + 1)]
        for sequence in sequences:
            encoded = self._encoder.encode({"x": sequence}, requests.memory(sequence))
            requests.publish(tuple(RequestHead(sequence, Kind.INFER, 0, 0, 0, 0, time.monotonic_ns(), *encoded[:3], 0)))
        return sequences

    def answered(self, sequences: list[int]) -> list[bool]:
        assert self.channel is not None
        return [self.channel.replies.answered(sequence) for sequence in sequences]

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
        self.sealed.close()


@final
class Told:
    """An engine in this process that has loaded a model, and its supervisor's end of the control socket."""

    def __init__(self, package: Path, channel_turn_ns: int) -> None:
        self._socket, theirs = socket.socketpair()
        self._control = ControlSocket(theirs)
        self._theirs = theirs
        self._stats = Stats(create_stats_memory())
        self.engine = Engine(self._control, self._stats, load(package), channel_turn_ns=channel_turn_ns)
        assert self.engine.load()
        self.said()
        self.clients: list[Client] = []

    def client(self) -> Client:
        self.clients.append(Client(len(self.clients)))
        return self.clients[-1]

    def tell(self, message: SupervisorMessage, fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(self._socket, [encode(message, len(fds))], fds)
        self._stats.words[Counter.CONTROL] += 1

    def attach(self, client: Client, geometry: Geometry = _SMALL) -> None:
        self.tell(client.grow(geometry), client.sealed.engine_ends())

    def run(self) -> list[type]:
        """Until it stops; the kinds of messages that it sent, without the structure of the first observation."""
        self.engine.run()
        return [type(message) for message in self.said() if not isinstance(message, FirstObservation)]

    def said(self) -> list[Any]:
        self._socket.setblocking(False)
        received = bytearray()
        try:
            while data := self._socket.recv(65536):
                received += data
        except BlockingIOError:
            pass
        return [message for message, _ in take_messages(received, FROM_ENGINE)]

    def hang_up(self) -> None:
        self._socket.close()

    def close(self) -> None:
        loop, channels = self.engine._loop, self.engine._channels
        assert loop is not None and channels is not None
        for number in list(loop.states):
            loop.remove(number)
        while channels.busy:
            channels.go_on()
        loop._bell.close()
        for client in self.clients:
            client.close()
        self._socket.close()
        self._theirs.close()
        self._stats.close()


@pytest.fixture
def told(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Told]:
    threads = torch.get_num_threads()
    shutil.copytree(POLICIES / "echo", tmp_path / "echo")
    told = Told(tmp_path / "echo", getattr(request, "param", TURN_NS))
    yield told
    told.close()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("told", [3600 * 10**9], indirect=True)  # however little a channel takes
def test_waiting_clients_are_served_after_each_channel_and_before_later_messages(told: Told) -> None:
    robot = told.client()
    told.attach(robot)
    asked = robot.publish(2)
    told.tell(Serve())
    for _ in range(3):  # the first with "serve": it is not served before
        told.attach(told.client())
    told.tell(Stop())

    assert told.run() == [Serving]
    assert robot.answered(asked) == [True, True]


@pytest.mark.fault("T62")
@pytest.mark.parametrize("told", [0], indirect=True)  # as if each piece took long
def test_other_clients_are_served_while_a_large_channel_is_populated(told: Told) -> None:
    robot = told.client()
    told.attach(robot)
    asked = robot.publish(8)
    told.tell(Serve())
    told.attach(told.client(), _LARGE)
    told.tell(Stop())

    assert told.run() == [Serving]
    assert robot.answered(asked) == [True] * 8


@pytest.mark.fault("T62")
@pytest.mark.parametrize("told", [0], indirect=True)
def test_other_clients_are_served_while_a_large_channel_is_unmapped(told: Told) -> None:
    robot, leaving = told.client(), told.client()
    told.attach(leaving, _LARGE)
    told.attach(robot)
    asked = robot.publish(8)
    told.tell(Serve())
    told.tell(Detach(leaving.number))
    told.tell(Stop())

    assert told.run() == [Serving]
    assert robot.answered(asked) == [True] * 8


@pytest.mark.parametrize("told", [0], indirect=True)
def test_messages_behind_a_channel_keep_their_order(told: Told) -> None:
    robot, gone = told.client(), told.client()
    told.tell(Serve())
    told.attach(gone, _LARGE)
    told.tell(Detach(gone.number))
    told.attach(robot, _LARGE)
    told.attach(robot, _LARGE)  # it grows
    asked = robot.publish(2)
    told.tell(Pause())
    told.tell(Serve())
    told.attach(told.client())
    told.attach(told.client())
    told.tell(Stop())

    assert told.run() == [Serving, Paused, Serving]
    assert robot.answered(asked) == [True, True]
    assert told.engine._loop is not None and set(told.engine._loop.states) == {0, 2, 3}


def test_a_supervisor_that_is_gone_ends_the_engine_although_a_channel_was_on_its_way(told: Told) -> None:
    told.tell(Serve())
    told.attach(told.client(), _LARGE)
    told.hang_up()

    told.engine.run()


def test_an_invalid_channel_is_reported_and_leaves_nothing(told: Told) -> None:
    client = told.client()
    attach = client.grow(_SMALL)
    identity = attach.channel_info.identity
    attach = replace(attach, channel_info=ChannelInfo(replace(identity, generation=identity.generation + 1), None))
    before = sorted(os.listdir("/proc/self/fd"))
    told.tell(Serve())
    told.tell(attach, client.sealed.engine_ends())
    told.tell(Stop())

    assert told.run() == [Serving, Broken]
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_generation_that_is_gone_already_leaves_the_client_s_state(told: Told) -> None:
    channels = told.engine._channels
    assert channels is not None
    made: list[int] = []
    make = channels._channel_state

    def counted(*arguments: Any) -> Any:
        made.append(1)
        return make(*arguments)

    channels._channel_state = counted
    client = told.client()
    told.tell(Serve())
    told.attach(client)
    stale = client.grow(_SMALL)
    identity = stale.channel_info.identity
    other = ChannelInfo(replace(identity, epoch=identity.epoch + 1), None)
    told.tell(replace(stale, channel_info=other), client.sealed.engine_ends())
    told.attach(client)
    told.tell(Stop())

    assert told.run() == [Serving, Broken]
    assert len(made) == 1


def mapped_segments() -> set[str]:
    """Return the mappings of sealed segments; an earlier test of this process may have left some."""
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:shmserve (" in line}


def test_objects_of_departed_clients_are_neither_mapped_nor_open(told: Told) -> None:
    before, mapped = sorted(os.listdir("/proc/self/fd")), mapped_segments()
    told.tell(Serve())
    client = told.client()
    told.attach(client, _LARGE)
    told.attach(client, _LARGE)
    told.tell(Detach(client.number))
    told.tell(Stop())
    client.close()
    client.channel = None

    told.run()

    assert sorted(os.listdir("/proc/self/fd")) == before
    assert mapped_segments() <= mapped
