"""File descriptors that go with varlink messages: each comes with its own, and none stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shmserve.daemon.varlink.connection import ConnectionLimits
from shmserve.varlink_socket import close_fds
from tests.support.varlink_service import (
    ERROR,
    Service,
    echo_call,
    echo_reply,
    eventually,
    memory_files,
    pass_fds,
    read_messages,
    read_to_the_end,
)


def test_descriptors_come_with_their_call_and_are_closed_after_it(tmp_path: Path) -> None:
    method = "org.example.Test.TakeFds"
    with Service(tmp_path, ConnectionLimits(accept_fds=2)) as service, service.connect() as connection:
        with memory_files(11, 22) as fds:
            assert connection.call(method, timeout_s=30, fds=fds).parameters == {"sizes": [11, 22]}
            assert connection.call(method, timeout_s=30).parameters == {"sizes": []}
            assert connection.call(method, {"keep": 1}, timeout_s=30, fds=fds).parameters == {"sizes": [11, 22]}
        assert [os.fstat(fd).st_size for fd in service.kept] == [11]


def test_descriptors_of_pipelined_calls_are_not_mixed_up(tmp_path: Path) -> None:
    take = b'{"method":"org.example.Test.TakeFds"}\0'
    with (
        Service(tmp_path, ConnectionLimits(accept_fds=2)) as service,
        service.raw() as sock,
        memory_files(11, 22) as fds,
    ):
        sock.sendall(echo_call("slow") + take)
        pass_fds(sock, take[:10], [fds[0]])
        pass_fds(sock, take[10:] + take, [fds[1]])
        pass_fds(sock, take, [fds[0]])
        sock.sendall(take)
        sizes = [b"", b"11,22", b"", b"11", b""]
        expected = b"".join(b'{"parameters":{"sizes":[%s]}}\0' % size for size in sizes)
        assert read_messages(sock, 6) == echo_reply("slow") + expected


@pytest.mark.fault("T63")
def test_a_socket_that_takes_no_descriptors_never_holds_one(tmp_path: Path) -> None:
    with Service(tmp_path) as service, service.raw() as sock, memory_files(11) as fds:
        pass_fds(sock, b'{"method":"org.example.Test.TakeFds"}\0', fds * 250)
        assert read_messages(sock, 1) == b'{"parameters":{"sizes":[]}}\0'


@pytest.mark.parametrize("pieces", [[250], [3], [1, 2], [2, 1]])
def test_too_many_descriptors_end_the_connection_and_none_stays(tmp_path: Path, pieces: list[int]) -> None:
    with Service(tmp_path, ConnectionLimits(accept_fds=2)) as service, service.raw() as sock, memory_files(11) as fds:
        for piece in pieces:
            pass_fds(sock, b'{"method":', fds * piece)
        reason = b'{"reason":"more than 2 file descriptors came with a message"}'
        assert read_to_the_end(sock) == ERROR % (b"io.shmserve.ProtocolViolation", reason)


def test_descriptors_of_calls_that_are_never_answered_are_closed(tmp_path: Path) -> None:
    take = b'{"method":"org.example.Test.TakeFds"}\0'
    with Service(tmp_path, ConnectionLimits(accept_fds=2)) as service, memory_files(11) as fds:
        with service.raw() as sock:
            pass_fds(sock, b'{"method":"org.example.Test.Wait"}\0', fds)
            assert service.waiting.wait(30)
            pass_fds(sock, take, fds)
            pass_fds(sock, take[:5], fds)
        with service.raw() as sock:
            pass_fds(sock, take[:5], fds)
        with service.raw() as sock:
            pass_fds(sock, b"nonsense\0", fds)
            read_to_the_end(sock)
        eventually(lambda: len(service.open_connections()) <= 1)


def test_descriptors_go_with_their_reply_and_are_closed_here(tmp_path: Path) -> None:
    method = "org.example.Test.GiveFds"
    with Service(tmp_path) as service, service.connect(accept_fds=1) as connection:
        for n, reply in enumerate(connection.call_more(method, {"count": 3}, timeout_s=30)):
            (fd,) = reply.fds
            assert os.fstat(fd).st_size == n
            os.close(fd)
        (fd,) = connection.call("org.example.Test.GiveFd", {"size": 2}, timeout_s=30).fds
        assert os.fstat(fd).st_size == 2
        os.close(fd)
        with service.raw() as sock:
            sock.sendall(b'{"method":"org.example.Test.GiveFd","parameters":{"size":3},"oneway":true}\0')
            sock.sendall(echo_call("done"))
            assert read_messages(sock, 1) == echo_reply("done")


def test_a_reply_that_goes_in_parts_brings_its_descriptors_once(tmp_path: Path) -> None:
    with Service(tmp_path) as service, service.connect(accept_fds=2) as connection:
        parameters = {"count": 30, "padding": 60000}
        replies = connection.call_more("org.example.Test.GiveFds", parameters, timeout_s=30)
        time.sleep(0.2)  # the service has filled its buffer, and waits in the middle of a reply
        for n, reply in enumerate(replies):
            assert [os.fstat(fd).st_size for fd in reply.fds] == [n]
            close_fds(reply.fds)
        assert n == 29
