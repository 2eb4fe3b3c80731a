"""What a varlink call is answered with: bytes by hand, calls together and in pieces, methods that break."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from shmserve.varlink import MESSAGE_LIMIT, VarlinkError
from shmserve.varlink_connection import VarlinkConnection
from tests.support.varlink_service import (
    ERROR,
    SECRET,
    Service,
    echo_call,
    echo_reply,
    eventually,
    read_messages,
    read_to_the_end,
)

INTERFACES = b'["org.varlink.service","io.shmserve","org.example.Test"]'


@pytest.mark.parametrize(
    ("call", "reply"),
    [
        (
            b'{"method":"org.varlink.service.GetInfo"}\0',
            b'{"parameters":{"vendor":"v","product":"p","version":"0","url":"u","interfaces":%s}}\0' % INTERFACES,
        ),
        (b'{"method":"org.example.Test.Echo","parameters":{"text":"\xc3\xa9"}}\0', echo_reply("é")),
        (b'{"method":"org.example.Test.Echo","parameters":{"text":"x"},"more":true}\0', echo_reply("x")),
        (
            b'{"method":"org.example.Test.Echo","parameters":{"text":7}}\0',
            ERROR % (b"org.varlink.service.InvalidParameter", b'{"parameter":"text"}'),
        ),
        (
            b'{"method":"org.example.Nothing.Echo"}\0',
            ERROR % (b"org.varlink.service.InterfaceNotFound", b'{"interface":"org.example.Nothing"}'),
        ),
        (b'{"method":"Echo"}\0', ERROR % (b"org.varlink.service.InterfaceNotFound", b'{"interface":""}')),
        (
            b'{"method":"org.example.Test.Nothing"}\0',
            ERROR % (b"org.varlink.service.MethodNotFound", b'{"method":"org.example.Test.Nothing"}'),
        ),
        (
            b'{"method":"org.example.Test.Missing"}\0',
            ERROR % (b"org.varlink.service.MethodNotImplemented", b'{"method":"org.example.Test.Missing"}'),
        ),
        (
            b'{"method":"org.example.Test.Echo","parameters":{"text":"x"},"upgrade":true}\0',
            ERROR % (b"org.varlink.service.MethodNotImplemented", b'{"method":"org.example.Test.Echo"}'),
        ),
        (
            b'{"method":"org.example.Test.Count","parameters":{"to":1}}\0',
            ERROR % (b"org.varlink.service.ExpectedMore", b"{}"),
        ),
        (
            b'{"method":"org.example.Test.Fail","parameters":{"how":"typed"}}\0',
            ERROR % (b"org.example.Test.Refused", b'{"why":"x"}'),
        ),
        (
            b'{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"a.b"}}\0',
            ERROR % (b"org.varlink.service.InterfaceNotFound", b'{"interface":"a.b"}'),
        ),
    ],
)
def test_a_call_is_answered_with_these_bytes(tmp_path: Path, call: bytes, reply: bytes) -> None:
    with Service(tmp_path) as service, service.raw() as sock:
        sock.sendall(call)
        assert read_messages(sock, 1) == reply


def test_a_call_may_come_one_byte_at_a_time(tmp_path: Path) -> None:
    with Service(tmp_path) as service, service.raw() as sock:
        for byte in echo_call("hello") * 2:
            sock.send(bytes([byte]))
        assert read_messages(sock, 2) == echo_reply("hello") * 2


def test_pipelined_calls_are_answered_in_their_order(tmp_path: Path) -> None:
    with Service(tmp_path) as service, service.raw() as sock:
        texts = [f"{'slow' if n % 7 == 0 else 'fast'} {n}" for n in range(50)]
        sock.sendall(b"".join(map(echo_call, texts)))
        assert read_messages(sock, len(texts)) == b"".join(map(echo_reply, texts))


def test_more_calls_than_fit_a_read_are_all_answered(tmp_path: Path) -> None:
    with Service(tmp_path) as service, service.raw() as sock:
        text = "x" * 50000
        sender = threading.Thread(target=sock.sendall, args=(echo_call(text) * 20,))
        sender.start()
        received = read_messages(sock, 20)
        sender.join()
        assert received == echo_reply(text) * 20


def test_a_oneway_call_is_run_and_not_answered(tmp_path: Path) -> None:
    with Service(tmp_path) as service, service.raw() as sock:
        sock.sendall(echo_call("unanswered").replace(b"}}\0", b'},"oneway":true}\0'))
        sock.sendall(b'{"method":"org.example.Test.Nothing","oneway":true}\0')
        sock.sendall(echo_call("answered"))
        assert read_messages(sock, 1) == echo_reply("answered")
        assert service.echoed == ["unanswered", "answered"]


def test_more_gives_replies_until_the_last(tmp_path: Path) -> None:
    def count(connection: VarlinkConnection, **parameters: Any) -> list[tuple[bool, dict[str, Any]]]:
        replies = connection.call_more("org.example.Test.Count", parameters, timeout_s=30)
        return [(reply.continues, reply.parameters) for reply in replies]

    with Service(tmp_path) as service, service.connect() as connection:
        assert count(connection, to=2) == [(True, {"n": 0}), (True, {"n": 1}), (False, {})]
        assert count(connection, to=1, fail="last") == [(True, {"n": 0}), (False, {"n": -1})]
        replies = connection.call_more("org.example.Test.Count", {"to": 1, "fail": "typed"}, timeout_s=30)
        assert next(replies).parameters == {"n": 0}
        with pytest.raises(VarlinkError, match="Refused"):
            next(replies)
        assert count(connection, to=0) == [(False, {})]


@pytest.mark.parametrize("how", ["unexpected", "cancelled", "large", "nan", "object", "badly typed"])
def test_a_method_that_breaks_tells_the_log_and_not_the_peer(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Service(tmp_path) as service, service.raw() as sock:
        sock.sendall(b'{"method":"org.example.Test.Fail","parameters":{"how":"%s"}}\0' % how.encode())
        sock.sendall(echo_call("still there"))
        received = read_messages(sock, 2)

    assert received == ERROR % (b"io.shmserve.InternalError", b"{}") + echo_reply("still there")
    assert f"'org.example.Test.Fail' failed for uid {os.getuid()}, pid {os.getpid()}" in caplog.text
    assert "Traceback" in caplog.text
    if how == "unexpected":
        assert SECRET in caplog.text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0", b"a message is not JSON at character 0"),
        (b"GET / HTTP/1.1\r\n\r\n\0", b"a message is not JSON at character 0"),
        (b"x" * (MESSAGE_LIMIT + 1), b"a message is longer than 65536 bytes"),
        (b"[" * 60000 + b"\0", b"a message is nested deeper than 32 levels"),
    ],
)
def test_bytes_that_are_not_varlink_end_the_connection_after_the_calls_before_them(
    tmp_path: Path, data: bytes, reason: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with Service(tmp_path) as service, service.raw() as sock:
        sock.sendall(echo_call("slow one"))
        eventually(lambda: service.connections)
        sock.sendall(data)
        received = read_to_the_end(sock)

    violation = ERROR % (b"io.shmserve.ProtocolViolation", b'{"reason":"%s"}' % reason)
    assert received == echo_reply("slow one") + violation
    assert f"closing the connection of uid {os.getuid()}, pid {os.getpid()}: {reason.decode()}" in caplog.text
    assert "GET" not in caplog.text
