"""The varlink server as a whole: how it ends, which interfaces it takes, what it logs."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shmserve.daemon.varlink.interface import Connection, Interface, InterfaceTable, ServiceInfo
from shmserve.daemon.varlink.log_limit import ProvokedLog
from shmserve.daemon.varlink.server import VarlinkServer, listen_unix
from shmserve.varlink_connection import VarlinkConnection
from tests.support.varlink_service import (
    DESCRIPTION,
    Service,
    echo_call,
    echo_reply,
    read_messages,
    read_to_the_end,
)


def test_closing_ends_the_listener_the_connections_and_the_methods(tmp_path: Path) -> None:
    with Service(tmp_path) as service, service.raw() as sock:
        sock.sendall(b'{"method":"org.example.Test.Wait"}\0')
        assert service.waiting.wait(30)
        service.loop.call_soon_threadsafe(service.server.close)
        assert read_to_the_end(sock) == b""
        service.thread.join(30)
        assert service.cancelled.is_set()
        with pytest.raises(ConnectionRefusedError):
            service.connect()


def test_a_server_that_stops_accepting_keeps_its_connections(tmp_path: Path) -> None:
    with Service(tmp_path) as service, service.raw() as sock:
        sock.sendall(echo_call("before"))
        assert read_messages(sock, 1) == echo_reply("before")
        service.loop.call_soon_threadsafe(service.server.stop_accepting)
        service.loop.call_soon_threadsafe(service.server.stop_accepting)
        sock.sendall(echo_call("after"))
        assert read_messages(sock, 1) == echo_reply("after")
        with pytest.raises(ConnectionRefusedError):
            service.connect()


def test_a_cancelled_server_closes_everything(tmp_path: Path) -> None:
    async def serve_and_cancel() -> None:
        info = ServiceInfo("", "", "", "")
        server = VarlinkServer(listen_unix(tmp_path / "s", 0o600), info, [], refusal=lambda peer: None)
        task = asyncio.create_task(server.serve())
        with VarlinkConnection.connect(tmp_path / "s", 30) as connection:
            await asyncio.to_thread(connection.call, "org.varlink.service.GetInfo", timeout_s=30)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert connection.peer_closed()
        server.close()

    before = os.listdir("/proc/self/fd")
    asyncio.run(serve_and_cancel())
    assert os.listdir("/proc/self/fd") == before


async def nothing(connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(
    ("name", "methods", "message"),
    [
        ("org.example.Other", {}, "does not say 'interface org.example.Other'"),
        ("org.example.Test", {"Ekko": nothing}, "lacks Ekko"),
        ("org.example.Test", {"Ekko": nothing, "Echo": nothing, "Count_": nothing}, "lacks Count_, Ekko"),
    ],
)
def test_an_interface_that_its_description_does_not_describe_is_refused(
    name: str, methods: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Interface(name, DESCRIPTION, methods)


def test_two_interfaces_of_one_name_are_refused() -> None:
    twice = [Interface("org.example.Test", DESCRIPTION)] * 2
    InterfaceTable(ServiceInfo("", "", "", ""), twice[:1])
    with pytest.raises(ValueError, match=r"two interfaces are named io\.shmserve"):
        InterfaceTable(ServiceInfo("", "", "", ""), [Interface("io.shmserve", "interface io.shmserve\n")])


def test_a_provoked_log_says_how_much_it_left_out(caplog: pytest.LogCaptureFixture) -> None:
    now_ns = 0
    log = ProvokedLog(logging.getLogger("test"), burst=2, clock=lambda: now_ns)
    for n in range(10):
        log.warning("line %d", n)
    assert [record.getMessage() for record in caplog.records] == ["line 0", "line 1"]
    now_ns = 1_000_000_000
    log.warning("line %d", 10)
    assert caplog.records[-1].getMessage() == "line 10 (8 such lines left out)"
