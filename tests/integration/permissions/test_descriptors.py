"""No program that a policy, a robot or an operator starts inherits a descriptor of the service."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from shmserve.client.cli.connection import AdminConnection
from shmserve.daemon.host.descriptors import keep_from_children
from shmserve.daemon.ipc.control import ControlSocket
from shmserve.daemon.ipc.messages import Record, Serve, encode
from shmserve.record_ring import RecordRingReader
from tests.support.daemon_process import Daemon, wait_until
from tests.support.descriptors import inheritable


def look(daemon: Daemon) -> None:
    """Robots and a recorder at work: every descriptor of theirs, of the supervisor's and of the engine's."""
    before = inheritable(os.getpid())
    record_ring = RecordRingReader(4096)
    with (
        daemon.client() as robot,
        daemon.client() as other,
        AdminConnection(daemon.name, daemon.runtime_dir) as connection,
    ):
        next(connection.call_more("Record", {}, fd=record_ring.descriptor))
        wait_until(
            "the engine has the record ring",
            lambda: "shmserve-record-ring" in Path(f"/proc/{daemon.engine_pid}/maps").read_text(),
        )
        for client in (robot, other):
            assert client.infer({"do": "echo", "value": 1})
            assert client.infer({"do": "echo", "value": bytes(1 << 20)})  # another generation of its channel

        assert inheritable(daemon.engine_pid) == {}
        assert inheritable(daemon.pid) == {}
        assert inheritable(os.getpid()).keys() <= before.keys()
    record_ring.close()


def test_a_policy_s_and_a_robot_s_children_inherit_no_descriptor(start_daemon: Callable[..., Daemon]) -> None:
    look(start_daemon("obedient", arguments=("--transport", "sealed")))


def test_nor_do_they_with_named_memory(obedient: Daemon) -> None:
    look(obedient)


def test_inherited_descriptors_are_closed_in_children() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)

    keep_from_children()

    assert not os.get_inheritable(writing)
    assert all(os.get_inheritable(standard) for standard in range(3))
    os.close(reading)
    os.close(writing)


@pytest.mark.usefixtures("no_descriptor_is_left")
def test_an_engine_without_room_for_descriptors_gives_no_message_those_of_another() -> None:
    ours, theirs = socket.socketpair()
    control = ControlSocket(theirs)
    given = [os.open(path, os.O_RDONLY) for path in ("/", "/proc", "/dev", "/sys", "/tmp")]
    spare = os.dup(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    socket.send_fds(ours, [encode(Record(1), 4)], given[:4])
    socket.send_fds(ours, [encode(Serve())], [])
    socket.send_fds(ours, [encode(Record(2), 1)], given[4:])
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 1, hard))
    try:
        arrivals = control.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert [arrival.message for arrival in arrivals] == [Record(1), Serve(), Record(2)]
    assert [len(arrival.fds) for arrival in arrivals] == [0, 0, 1]
    (came,) = arrivals[2].fds
    assert os.path.samestat(os.fstat(came), os.fstat(given[4]))
    assert not os.get_inheritable(came)
    for descriptor in (*given, came):
        os.close(descriptor)
    ours.close()
    theirs.close()
