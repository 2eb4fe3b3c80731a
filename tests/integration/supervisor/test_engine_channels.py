"""What the supervisor says of channels, as an engine carries it out: its real messages, a real control socket, real segments."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import pytest
import torch

from shmserve.channel import ChannelInfo, ClientChannel
from shmserve.codec import Encoder
from shmserve.daemon.engine.loop import channel_setup as channels
from shmserve.daemon.engine.main import Engine
from shmserve.daemon.ipc.control import ControlSocket, encode
from shmserve.daemon.ipc.stats import Counter, Stats, create_stats_memory
from shmserve.layout import Geometry, sequence_of
from shmserve.protocol import Kind
from shmserve.ring import RequestHead
from shmserve.sealed_channel import SealedChannelFds
from shmserve.segment import Identity
from tests.support.daemon_process import POLICIES

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

    def grow(self, geometry: Geometry) -> dict[str, Any]:
        """Another generation, the first one, too; what the supervisor says of it."""
        self._generation += 1
        channel_info = ChannelInfo(Identity(1, self.number, self._generation), None)
        before, self.channel = self.channel, None
        given = self.sealed.create(channel_info.identity, geometry, _SMALL)
        self.channel = ClientChannel(channel_info, given, before)
        if before is not None:
            before.close()
        return {"channel_info": channel_info.to_json(), "trusted": False, "uid": 0, "carried": []}

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

    def __init__(self, package: Path) -> None:
        self._socket, theirs = socket.socketpair()
        self._control = ControlSocket(theirs)
        self._theirs = theirs
        self._stats = Stats(create_stats_memory())
        order = {"package": str(package), "device": "cpu", "called": "echo", "serial": 1, "spin_us": 0}
        self.engine = Engine(self._control, self._stats, {**order, "request_bell": None, "trusted_transport": False})
        assert self.engine.load()
        self.said()
        self.clients: list[Client] = []

    def client(self) -> Client:
        self.clients.append(Client(len(self.clients)))
        return self.clients[-1]

    def tell(self, event: str, fds: tuple[int, ...] = (), **fields: Any) -> None:
        socket.send_fds(self._socket, [encode(event, **fields, fds=len(fds))], fds)
        self._stats.words[Counter.CONTROL] += 1

    def attach(self, client: Client, geometry: Geometry = _SMALL) -> None:
        attach = client.grow(geometry)
        self.tell("attach", client.sealed.engine_ends(), **attach)

    def run(self) -> list[str]:
        """Until it stops; which events it told of."""
        self.engine.run()
        return [message["event"] for message in self.said()]

    def said(self) -> list[dict[str, Any]]:
        self._socket.setblocking(False)
        received = b""
        try:
            while data := self._socket.recv(65536):
                received += data
        except BlockingIOError:
            pass
        return [json.loads(message) for message in received.split(b"\0")[:-1]]

    def hang_up(self) -> None:
        self._socket.close()

    def close(self) -> None:
        loop, channels = self.engine._loop, self.engine._channels
        assert loop is not None and channels is not None
        for number in list(loop.tenancies):
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
def told(tmp_path: Path) -> Iterator[Told]:
    threads = torch.get_num_threads()
    shutil.copytree(POLICIES / "echo", tmp_path / "echo")
    told = Told(tmp_path / "echo")
    yield told
    told.close()
    torch.set_num_threads(threads)


def test_who_waits_is_served_after_each_channel_and_before_what_was_said_behind_it(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_TURN_NS", 3600 * 10**9)  # however little a channel takes
    robot = told.client()
    told.attach(robot)
    asked = robot.publish(2)
    told.tell("serve")
    for _ in range(3):  # the first with "serve": it is not served before
        told.attach(told.client())
    told.tell("stop")

    assert told.run() == ["serving"]
    assert robot.answered(asked) == [True, True]


@pytest.mark.fault("T62")
def test_who_waits_is_served_between_two_pieces_of_a_large_channel(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "_TURN_NS", 0)  # as if each piece took long
    robot = told.client()
    told.attach(robot)
    asked = robot.publish(8)
    told.tell("serve")
    told.attach(told.client(), _LARGE)
    told.tell("stop")

    assert told.run() == ["serving"]
    assert robot.answered(asked) == [True] * 8


@pytest.mark.fault("T62")
def test_who_waits_is_served_between_two_pieces_of_a_channel_that_is_left(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_TURN_NS", 0)
    robot, leaving = told.client(), told.client()
    told.attach(leaving, _LARGE)
    told.attach(robot)
    asked = robot.publish(8)
    told.tell("serve")
    told.tell("detach", channel=leaving.number)
    told.tell("stop")

    assert told.run() == ["serving"]
    assert robot.answered(asked) == [True] * 8


def test_what_is_said_behind_a_channel_keeps_its_order(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "_TURN_NS", 0)
    robot, gone = told.client(), told.client()
    told.tell("serve")
    told.attach(gone, _LARGE)
    told.tell("detach", channel=gone.number)
    told.attach(robot, _LARGE)
    told.attach(robot, _LARGE)  # it grows
    asked = robot.publish(2)
    told.tell("pause")
    told.tell("serve")
    told.attach(told.client())
    told.attach(told.client())
    told.tell("stop")

    assert told.run() == ["serving", "paused", "serving"]
    assert robot.answered(asked) == [True, True]
    assert told.engine._loop is not None and set(told.engine._loop.tenancies) == {0, 2, 3}


def test_a_supervisor_that_is_gone_ends_the_engine_although_a_channel_was_on_its_way(told: Told) -> None:
    told.tell("serve")
    told.attach(told.client(), _LARGE)
    told.hang_up()

    told.engine.run()


def test_a_channel_that_is_none_is_told_of_and_leaves_nothing(told: Told) -> None:
    client = told.client()
    attach = client.grow(_SMALL)
    attach["channel_info"]["identity"]["generation"] += 1
    before = sorted(os.listdir("/proc/self/fd"))
    told.tell("serve")
    told.tell("attach", client.sealed.engine_ends(), **attach)
    told.tell("stop")

    assert told.run() == ["serving", "broken"]
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_what_clients_have_left_is_neither_mapped_nor_open(told: Told) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    told.tell("serve")
    client = told.client()
    told.attach(client, _LARGE)
    told.attach(client, _LARGE)
    told.tell("detach", channel=client.number)
    told.tell("stop")
    client.close()
    client.channel = None

    told.run()

    assert sorted(os.listdir("/proc/self/fd")) == before
    assert "memfd:shmserve (" not in Path("/proc/self/maps").read_text()
