"""How many may be at the varlink server, and who may not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from shmserve.daemon.varlink.connection import ConnectionLimits
from shmserve.daemon.varlink.peer import Peer
from shmserve.varlink import VarlinkError
from shmserve.varlink_connection import VarlinkConnection
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


@pytest.mark.fault("T62")
@pytest.mark.parametrize("limits", [ConnectionLimits(connections=3), ConnectionLimits(connections_per_uid=3)])
def test_connections_above_the_limit_are_refused_and_closed_and_the_others_continue(
    tmp_path: Path, limits: ConnectionLimits, caplog: pytest.LogCaptureFixture
) -> None:
    with Service(tmp_path, limits) as service:
        with service.raw() as first, service.raw(), service.raw():
            first.sendall(echo_call("first"))
            assert read_messages(first, 1) == echo_reply("first")
            for _ in range(100):
                with service.raw() as sock:
                    told = ERROR % (b"io.shmserve.TooManyConnections", b'{"limit":3}')
                    assert read_to_the_end(sock) == told
            with service.connect() as connection, pytest.raises(VarlinkError, match="TooManyConnections"):
                connection.call("org.example.Test.Echo", {"text": "x"}, timeout_s=30)
            first.sendall(echo_call("second"))
            assert read_messages(first, 1) == echo_reply("second")
            assert service.open_connections() == [1, 2, 3]
        eventually(lambda: not service.open_connections())
        with service.connect() as connection:
            assert connection.call("org.example.Test.Echo", {"text": "x"}, timeout_s=30)

    lines = [record for record in caplog.records if "turning uid" in record.getMessage()]
    assert 1 <= len(lines) < 50


def test_a_forbidden_peer_gets_a_refusal_for_any_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[Peer] = []

    def refuse(peer: Peer) -> str:
        asked.append(peer)
        return "allow_uids"

    with Service(tmp_path, ConnectionLimits(accept_fds=1), refuse) as service, memory_files(11) as fds:
        for call in (echo_call("x"), b"not even a call\0"):
            with service.raw() as sock:
                pass_fds(sock, call, fds)
                assert read_to_the_end(sock) == ERROR % (
                    b"org.varlink.service.PermissionDenied",
                    b'{"setting":"allow_uids"}',
                )

    assert service.echoed == []
    assert asked == [Peer(os.getpid(), os.getuid(), os.getgid(), frozenset(os.getgroups()))] * 2
    assert f"refusing uid {os.getuid()}, pid {os.getpid()}: allow_uids does not name this user" in caplog.text


def test_peers_that_are_refused_take_no_connection_from_those_that_are_not(tmp_path: Path) -> None:
    refused = True
    limits = ConnectionLimits(connections=3, connections_per_uid=3, refused=2)

    with Service(tmp_path, limits, lambda peer: "allow_uids" if refused else None) as service, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(service.raw())
        for _ in range(4):
            told = ERROR % (b"io.shmserve.TooManyConnections", b'{"limit":2}')
            assert read_to_the_end(stack.enter_context(service.raw())) == told
        assert service.open_connections() == [1, 2]
        refused = False
        for _ in range(3):
            connection = stack.enter_context(service.connect())
            assert connection.call("org.example.Test.Echo", {"text": "x"}, timeout_s=30)


CROWDED_SERVER = """
import asyncio, json, resource, sys
from shmserve.daemon.varlink.interface import ServiceInfo
from shmserve.daemon.varlink.server import VarlinkServer, listen_unix

listener = listen_unix(sys.argv[1], 0o600)

class CountingLoop(asyncio.SelectorEventLoop):
    starts = 0

    def add_reader(self, fd, *rest):
        self.starts += fd is listener
        super().add_reader(fd, *rest)

loop = CountingLoop()

async def main():
    server = VarlinkServer(listener, ServiceInfo("", "", "", ""), [], refusal=lambda peer: None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    loop.add_reader(0, server.close)
    print("ready", flush=True)
    await server.serve()
    print(json.dumps(loop.starts - 1), flush=True)

loop.run_until_complete(main())
"""


@pytest.mark.fault("T63")
def test_a_server_without_free_descriptors_pauses_and_then_serves_the_waiting_clients(tmp_path: Path) -> None:
    path = str(tmp_path / "test.sock")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CROWDED_SERVER, path], **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"ready\n"
        started_s = time.monotonic()
        first = [VarlinkConnection.connect(path, 30) for _ in range(30)]
        assert first[0].call("org.varlink.service.GetInfo", timeout_s=30)  # the flood harms nobody who is in
        with pytest.raises(TimeoutError):
            first[-1].call("org.varlink.service.GetInfo", timeout_s=0.5)
        for connection in first[:-1]:
            connection.close()
        assert first[-1].call("org.varlink.service.GetInfo", timeout_s=30)
        first[-1].close()
        elapsed_s = time.monotonic() - started_s
        output, log = process.communicate(b"stop", timeout=30)
    assert b"accepting no connection for 0.1 s: Too many open files" in log
    assert process.returncode == 0
    pauses = json.loads(output)
    assert 1 <= pauses <= elapsed_s / 0.1 + 1  # it did not spin


def test_a_thousand_connections_leave_nothing_behind(tmp_path: Path) -> None:
    openings = (b"", b"\0", b'{"meth', echo_call("x"), echo_call("slow"), echo_call("x" * 60000) * 3)
    with Service(tmp_path, ConnectionLimits(connections=5000, connections_per_uid=5000)) as service:
        for n in range(1000):
            with service.raw() as sock:
                sock.setblocking(False)
                with suppress(BlockingIOError):
                    sock.send(openings[n % len(openings)])
        eventually(lambda: not service.open_connections())
        with service.raw() as sock:
            sock.sendall(echo_call("x"))
            assert read_messages(sock, 1) == echo_reply("x")
            assert service.open_connections() == [1001]
