"""The varlink server on real sockets: bytes by hand, a foreign client, peers that misbehave, descriptors counted."""

from __future__ import annotations

import array
import asyncio
import grp
import json
import logging
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, final

import pytest

from shmserve.daemon import peer as peer_module
from shmserve.daemon.peer import Peer, open_pidfd
from shmserve.daemon.provoked_log import ProvokedLog
from shmserve.daemon.varlink_connection import Connection, Limits
from shmserve.daemon.varlink_interface import Interface, InterfaceTable, Method, ServiceInfo
from shmserve.daemon.varlink_server import VarlinkServer, listen_unix
from shmserve.varlink import MESSAGE_LIMIT, Reply, VarlinkError, optional, required
from shmserve.varlink_connection import VarlinkConnection
from shmserve.varlink_socket import PATH_LIMIT, close_fds

DESCRIPTION = """\
# For the tests.
interface org.example.Test

method Echo(text: string) -> (text: string)
method Count(to: int, fail: ?string) -> (n: ?int)
method Fail(how: string) -> ()
method Wait() -> ()
method TakeFds(keep: ?int) -> (sizes: []int)
method GiveFds(count: int, padding: ?int) -> (count: int, padding: string)
method Missing() -> ()

error Refused (why: string)
"""
SECRET = "/secret/path"


@final
class Service:
    """The server in a thread of its own. Leaving it checks that no descriptor is left over in this process."""

    def __init__(self, folder: Path, limits: Limits | None = None, refusal: Callable[[Peer], str | None] | None = None):
        self.path = str(folder / "test.sock")
        self.limits = limits or Limits()
        self.refusal = refusal or (lambda peer: None)
        self.connections: list[Connection] = []
        self.closed: dict[int, str] = {}
        self.cancelled = threading.Event()
        self.waiting = threading.Event()
        self.release = threading.Event()
        self.kept: list[int] = []
        self.echoed: list[str] = []
        self.loop_errors: list[dict[str, Any]] = []

    def interface(self) -> Interface:
        methods: dict[str, Method] = {
            "Echo": self.echo,
            "Count": self.count,
            "Fail": self.fail,
            "Wait": self.wait,
            "TakeFds": self.take_fds,
            "GiveFds": self.give_fds,
        }
        return Interface("org.example.Test", DESCRIPTION, methods, without_more=frozenset({"GiveFds"}))

    async def echo(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self.seen(connection)
        text = required(parameters, "text", str)
        if text.startswith("slow"):
            await asyncio.sleep(0.05)
        while text.startswith("held") and not self.release.is_set():
            await asyncio.sleep(0.01)
        self.echoed.append(text)
        return {"text": text}

    async def count(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> AsyncIterator[dict[str, Any] | Reply]:
        for n in range(required(parameters, "to", int)):
            yield Reply({"n": n}, continues=True)
        fail = optional(parameters, "fail", str)
        if fail == "typed":
            raise VarlinkError("org.example.Test.Refused", {"why": "asked to"})
        if fail == "last":
            yield {"n": -1}
            raise AssertionError("the generator went on after its last reply")

    async def fail(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any] | Reply:
        how = required(parameters, "how", str)
        if how == "typed":
            raise VarlinkError("org.example.Test.Refused", {"why": "x"})
        if how == "badly typed":
            raise VarlinkError("org.example.Test.Refused", {"why": object()})
        if how == "large":
            return {"x": "y" * MESSAGE_LIMIT}
        if how == "nan":
            return {"x": float("nan")}
        if how == "cancelled":
            raise asyncio.CancelledError
        if how == "object":
            return Reply({"x": object()}, fds=(os.dup(0),))
        raise RuntimeError(SECRET)

    async def wait(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self.seen(connection)
        self.waiting.set()
        try:
            await asyncio.sleep(3600)
        finally:
            self.cancelled.set()
        return {}

    async def take_fds(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        assert not any(os.get_inheritable(fd) for fd in fds)
        sizes = [os.fstat(fd).st_size for fd in fds]
        for _ in range(optional(parameters, "keep", int) or 0):
            self.kept.append(fds.pop(0))
        return {"sizes": sizes}

    async def give_fds(
        self, connection: Connection, parameters: dict[str, Any], fds: list[int]
    ) -> AsyncIterator[Reply]:
        count = required(parameters, "count", int)
        for n in range(count):
            padding = "x" * (optional(parameters, "padding", int) or 0)
            yield Reply({"count": count, "padding": padding}, continues=n < count - 1, fds=(memory_file(n),))

    def seen(self, connection: Connection) -> None:
        if connection not in self.connections:
            self.connections.append(connection)
            number = connection.number
            connection.closed.add_done_callback(lambda closed: self.closed.setdefault(number, closed.result()))

    def __enter__(self) -> Service:
        self.fds = sorted(os.listdir("/proc/self/fd"))
        ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serve(ready)))
        self.thread.start()
        assert ready.wait(30)
        return self

    async def serve(self, ready: threading.Event) -> None:
        info = ServiceInfo("v", "p", "0", "u")
        self.server = VarlinkServer(
            listen_unix(self.path, 0o600), info, [self.interface()], refusal=self.refusal, limits=self.limits
        )
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _, context: self.loop_errors.append(context))
        self.loop.call_soon(ready.set)
        await self.server.serve()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(RuntimeError):  # a test may have ended the loop itself
            self.loop.call_soon_threadsafe(self.server.close)
        self.thread.join(30)
        assert not self.thread.is_alive()
        for fd in self.kept:
            os.close(fd)
        if error is None:
            assert self.loop_errors == []
            assert sorted(os.listdir("/proc/self/fd")) == self.fds

    def connect(self, accept_fds: int = 0) -> VarlinkConnection:
        return VarlinkConnection.connect(self.path, 30, accept_fds=accept_fds)

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)  # before it has a timeout: with one, a full backlog would be an error
        sock.settimeout(30)
        return sock


def memory_file(size: int) -> int:
    fd = os.memfd_create("test")
    os.truncate(fd, size)
    return fd


@contextmanager
def memory_files(*sizes: int) -> Iterator[list[int]]:
    fds = [memory_file(size) for size in sizes]
    yield fds
    for fd in fds:
        os.close(fd)


def pass_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def select_readable(fd: int, timeout_s: float) -> bool:
    return bool(select.select([fd], [], [], timeout_s)[0])


def read_to_the_end(sock: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):  # it closed with bytes of ours unread
        while data := sock.recv(65536):
            received += data
    return received


def read_messages(sock: socket.socket, count: int) -> bytes:
    received = b""
    while received.count(b"\0") < count:
        data = sock.recv(65536)
        assert data, f"the service closed the connection after {received!r}"
        received += data
    return received


def eventually(condition: Callable[[], object]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in 30 s")


def echo_call(text: str) -> bytes:
    return b'{"method":"org.example.Test.Echo","parameters":{"text":"%s"}}\0' % text.encode()


def echo_reply(text: str) -> bytes:
    return b'{"parameters":{"text":"%s"}}\0' % text.encode()


INTERFACES = b'["org.varlink.service","io.shmserve","org.example.Test"]'
ERROR = b'{"error":"%s","parameters":%s}\0'


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
def test_what_is_not_varlink_ends_the_connection_after_the_calls_before_it(
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


def test_a_peer_that_dawdles_is_closed_and_one_that_is_quiet_between_calls_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Service(tmp_path, Limits(message_timeout_s=1)) as service, service.raw() as patient:
        patient.sendall(echo_call("first"))
        with service.raw() as silent, service.raw() as half, service.raw() as late:
            half.sendall(b'{"method"')
            late.sendall(echo_call("first") + b'{"method"')
            with suppress(ConnectionError), service.raw() as dribbling:
                while True:  # until the service hangs up
                    dribbling.sendall(b" ")
                    time.sleep(0.01)
            assert read_to_the_end(silent) == b""
            assert read_to_the_end(half) == b""
            assert read_to_the_end(late) == echo_reply("first")
        patient.sendall(echo_call("second"))
        assert read_messages(patient, 2) == echo_reply("first") + echo_reply("second")

    assert "no complete message in 1 s" in caplog.text


def test_a_long_method_is_no_dawdling_of_the_peer(tmp_path: Path) -> None:
    with Service(tmp_path, Limits(message_timeout_s=0.2)) as service, service.raw() as sock:
        # While a call waits behind the one in hand, nothing is read: half of the third call has arrived, and its other
        # half could not.
        third = echo_call("third")
        sock.sendall(echo_call("held 1") + echo_call("held 2") + third[:20])
        eventually(lambda: service.connections)
        time.sleep(0.5)
        sock.sendall(third[20:])
        service.release.set()
        assert read_messages(sock, 3) == echo_reply("held 1") + echo_reply("held 2") + echo_reply("third")


def test_a_peer_that_does_not_read_its_replies_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Service(tmp_path, Limits(write_timeout_s=0.2)) as service, service.raw() as sock:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                sock.sendall(echo_call("x" * 60000))
        eventually(lambda: service.server.stats().connections == 0)
    assert "it did not read a reply in 0.2 s" in caplog.text


def test_a_slow_reader_gets_every_byte(tmp_path: Path) -> None:
    with Service(tmp_path) as service, service.raw() as sock:
        sender = threading.Thread(target=sock.sendall, args=(echo_call("x" * 60000) * 20,))
        sender.start()
        time.sleep(0.2)  # the service has filled its buffer, and waits
        received = b""
        while received.count(b"\0") < 20:
            received += sock.recv(1000)
        sender.join()
        assert received == echo_reply("x" * 60000) * 20
        busy_s = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - busy_s < 0.25  # having waited for room, it does not spin on there being some


def test_a_peer_that_hangs_up_cancels_its_method(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        with service.raw() as sock:
            sock.sendall(b'{"method":"org.example.Test.Wait"}\0')
            assert service.waiting.wait(30)
        assert service.cancelled.wait(30)
        eventually(lambda: service.closed)
        assert list(service.closed.values()) == ["the peer closed it"]
        eventually(lambda: service.server.stats().connections == 0)


def test_a_peer_that_hangs_up_in_the_middle_of_a_reply_is_no_error(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        with service.raw() as sock:
            sock.sendall(
                b'{"method":"org.example.Test.GiveFds","parameters":{"count":30,"padding":60000},"more":true}\0'
            )
            read_messages(sock, 1)
            time.sleep(0.2)  # the service has filled its buffer, and waits in the middle of a reply
        eventually(lambda: service.server.stats().connections == 0)


FORKING_CLIENT = """
import os, signal, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(b'{"method":"org.example.Test.%s","parameters":{"text":"x"}}\\0' % sys.argv[2].encode())
child = os.fork()
if child == 0:
    signal.pause()  # with the socket open
print(child, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("method", ["Echo", "Wait"])
def test_a_killed_peer_is_noticed_although_its_child_keeps_the_socket_open(tmp_path: Path, method: str) -> None:
    with Service(tmp_path) as service:
        command = [sys.executable, "-c", FORKING_CLIENT, service.path, method]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            child = int(process.stdout.readline())
            try:
                eventually(lambda: service.connections)
                assert not service.closed
                process.send_signal(signal.SIGKILL)  # and nobody waits for it: a zombie is dead enough
                eventually(lambda: service.closed)
                os.kill(child, 0)  # alive, socket and all
            finally:
                process.kill()
                os.kill(child, signal.SIGKILL)
        assert list(service.closed.values()) == ["its process ended"]
        assert service.cancelled.is_set() == (method == "Wait")


def test_descriptors_come_with_their_call_and_are_closed_after_it(tmp_path: Path) -> None:
    method = "org.example.Test.TakeFds"
    with Service(tmp_path, Limits(accept_fds=2)) as service, service.connect() as connection:
        with memory_files(11, 22) as fds:
            assert connection.call(method, timeout_s=30, fds=fds).parameters == {"sizes": [11, 22]}
            assert connection.call(method, timeout_s=30).parameters == {"sizes": []}
            assert connection.call(method, {"keep": 1}, timeout_s=30, fds=fds).parameters == {"sizes": [11, 22]}
        assert [os.fstat(fd).st_size for fd in service.kept] == [11]


def test_descriptors_of_pipelined_calls_are_not_mixed_up(tmp_path: Path) -> None:
    take = b'{"method":"org.example.Test.TakeFds"}\0'
    with Service(tmp_path, Limits(accept_fds=2)) as service, service.raw() as sock, memory_files(11, 22) as fds:
        sock.sendall(echo_call("slow") + take)
        pass_fds(sock, take[:10], [fds[0]])
        pass_fds(sock, take[10:] + take, [fds[1]])
        pass_fds(sock, take, [fds[0]])
        sock.sendall(take)
        sizes = [b"", b"11,22", b"", b"11", b""]
        expected = b"".join(b'{"parameters":{"sizes":[%s]}}\0' % size for size in sizes)
        assert read_messages(sock, 6) == echo_reply("slow") + expected


def test_a_socket_that_takes_no_descriptors_never_holds_one(tmp_path: Path) -> None:
    with Service(tmp_path) as service, service.raw() as sock, memory_files(11) as fds:
        pass_fds(sock, b'{"method":"org.example.Test.TakeFds"}\0', fds * 250)
        assert read_messages(sock, 1) == b'{"parameters":{"sizes":[]}}\0'


@pytest.mark.parametrize("pieces", [[250], [3], [1, 2], [2, 1]])
def test_too_many_descriptors_end_the_connection_and_none_stays(tmp_path: Path, pieces: list[int]) -> None:
    with Service(tmp_path, Limits(accept_fds=2)) as service, service.raw() as sock, memory_files(11) as fds:
        for piece in pieces:
            pass_fds(sock, b'{"method":', fds * piece)
        reason = b'{"reason":"more than 2 file descriptors came with a message"}'
        assert read_to_the_end(sock) == ERROR % (b"io.shmserve.ProtocolViolation", reason)


def test_descriptors_of_calls_that_are_never_answered_are_closed(tmp_path: Path) -> None:
    take = b'{"method":"org.example.Test.TakeFds"}\0'
    with Service(tmp_path, Limits(accept_fds=2)) as service, memory_files(11) as fds:
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
        eventually(lambda: service.server.stats().connections <= 1)


def test_descriptors_go_with_their_reply_and_are_closed_here(tmp_path: Path) -> None:
    method = "org.example.Test.GiveFds"
    with Service(tmp_path) as service, service.connect(accept_fds=1) as connection:
        for n, reply in enumerate(connection.call_more(method, {"count": 3}, timeout_s=30)):
            (fd,) = reply.fds
            assert os.fstat(fd).st_size == n
            os.close(fd)
        # Without `more` only the last reply is sent, and the descriptors of the others are closed.
        (fd,) = connection.call(method, {"count": 3}, timeout_s=30).fds
        assert os.fstat(fd).st_size == 2
        os.close(fd)
        with service.raw() as sock:
            sock.sendall(b'{"method":"%s","parameters":{"count":3},"oneway":true}\0' % method.encode())
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


@pytest.mark.parametrize("limits", [Limits(connections=3), Limits(connections_per_uid=3)])
def test_connections_above_the_limit_are_told_and_closed_and_the_others_go_on(
    tmp_path: Path, limits: Limits, caplog: pytest.LogCaptureFixture
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
            stats = service.server.stats()
            assert (stats.connections, stats.accepted, stats.refused) == (3, 3, 101)
        eventually(lambda: service.server.stats().connections == 0)
        with service.connect() as connection:
            assert connection.call("org.example.Test.Echo", {"text": "x"}, timeout_s=30)

    lines = [record for record in caplog.records if "turning uid" in record.getMessage()]
    assert 1 <= len(lines) < 50


def test_a_peer_that_may_not_use_the_socket_is_told_so_whatever_it_calls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Peer] = []

    def refuse(peer: Peer) -> str:
        asked.append(peer)
        return "allow_uids"

    with Service(tmp_path, Limits(accept_fds=1), refuse) as service, memory_files(11) as fds:
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
    limits = Limits(connections=3, connections_per_uid=3, refused=2)

    with Service(tmp_path, limits, lambda peer: "allow_uids" if refused else None) as service, ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(service.raw())
        eventually(lambda: service.server.stats().accepted == 2)
        refused = False
        for _ in range(3):
            connection = stack.enter_context(service.connect())
            assert connection.call("org.example.Test.Echo", {"text": "x"}, timeout_s=30)


CROWDED_SERVER = """
import asyncio, json, resource, sys
from pathlib import Path
from shmserve.daemon.varlink_interface import ServiceInfo
from shmserve.daemon.varlink_server import VarlinkServer, listen_unix

async def main():
    server = VarlinkServer(listen_unix(sys.argv[1], 0o600), ServiceInfo("", "", "", ""), [], refusal=lambda peer: None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    asyncio.get_running_loop().add_reader(0, server.close)
    print("ready", flush=True)
    await server.serve()
    print(json.dumps(vars(server.stats())), flush=True)

asyncio.run(main())
"""


def test_a_server_out_of_descriptors_rests_and_then_serves_who_waited(tmp_path: Path) -> None:
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
    pauses = json.loads(output)["accept_pauses"]
    assert 1 <= pauses <= elapsed_s / 0.1 + 1  # it did not spin


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


def test_a_server_that_stops_accepting_goes_on_with_who_is_there(tmp_path: Path) -> None:
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


def test_a_thousand_connections_leave_nothing_behind(tmp_path: Path) -> None:
    openings = (b"", b"\0", b'{"meth', echo_call("x"), echo_call("slow"), echo_call("x" * 60000) * 3)
    with Service(tmp_path, Limits(connections=5000, connections_per_uid=5000)) as service:
        for n in range(1000):
            with service.raw() as sock:
                sock.setblocking(False)
                with suppress(BlockingIOError):
                    sock.send(openings[n % len(openings)])
        eventually(lambda: service.server.stats().connections == 0)
        assert service.server.stats().accepted == 1000


# A foreign client: asyncvarlink, which shares no code with this package.


def test_a_foreign_client_gets_replies_errors_progress_and_descriptions(tmp_path: Path) -> None:
    asyncvarlink = pytest.importorskip("asyncvarlink", reason="it needs Python 3.11")
    from asyncvarlink.serviceerrors import ExpectedMore, InterfaceNotFound, InvalidParameter
    from asyncvarlink.serviceinterface import VarlinkServiceInterface

    def call(name: str, parameters: dict[str, Any], **flags: bool) -> Any:
        return asyncvarlink.VarlinkMethodCall(f"org.example.Test.{name}", parameters, **flags)

    async def drive(path: str) -> None:
        transport, protocol = await asyncvarlink.connect_unix_varlink(asyncvarlink.VarlinkClientProtocol, path)
        try:
            about = protocol.make_proxy(VarlinkServiceInterface)
            info = await about.GetInfo()
            assert info["vendor"] == "v"
            assert info["interfaces"] == ["org.varlink.service", "io.shmserve", "org.example.Test"]
            for name in info["interfaces"]:
                text = (await about.GetInterfaceDescription(interface=name))["description"]
                assert f"interface {name}\n" in text
            assert text == DESCRIPTION
            with pytest.raises(InterfaceNotFound):
                await about.GetInterfaceDescription(interface="org.example.Nothing")

            echoes = await asyncio.gather(*(protocol.call(call("Echo", {"text": f"slow {n}"})) for n in range(5)))
            assert [reply.parameters["text"] for reply, _ in echoes] == [f"slow {n}" for n in range(5)]
            for name, parameters, error in (
                ("Echo", {"text": 7}, InvalidParameter.name),
                ("Count", {"to": 1}, ExpectedMore.name),
                ("Missing", {}, "org.varlink.service.MethodNotImplemented"),
                ("Fail", {"how": "typed"}, "org.example.Test.Refused"),
            ):
                reply, _ = await protocol.call(call(name, parameters))
                assert reply.error == error
            assert await protocol.call(call("Echo", {"text": "x"}, oneway=True)) is None

            counted = [
                (reply.continues, reply.parameters, reply.error)
                async for reply, _ in protocol.call_more(call("Count", {"to": 2, "fail": "typed"}, more=True))
            ]
            assert counted[:2] == [(True, {"n": 0}, None), (True, {"n": 1}, None)]
            assert counted[2] == (False, {"why": "asked to"}, "org.example.Test.Refused")

            with memory_files(11, 22) as fds:
                reply, _ = await protocol.call(call("TakeFds", {}), fds)
                assert reply.parameters == {"sizes": [11, 22]}
            done = asyncio.get_running_loop().create_future()
            _, received = await protocol.call(call("GiveFds", {"count": 1}), replyfdsdone=done)
            assert len(received) == 1
            done.set_result(None)
        finally:
            transport.close()
            await transport.closed_future

    with Service(tmp_path, Limits(accept_fds=2)) as service:
        asyncio.run(drive(service.path))


def test_a_foreign_client_that_may_not_use_the_socket_learns_it_from_its_first_call(tmp_path: Path) -> None:
    asyncvarlink = pytest.importorskip("asyncvarlink", reason="it needs Python 3.11")

    async def drive(path: str) -> str:
        transport, protocol = await asyncvarlink.connect_unix_varlink(asyncvarlink.VarlinkClientProtocol, path)
        try:
            reply, _ = await protocol.call(asyncvarlink.VarlinkMethodCall("org.varlink.service.GetInfo", {}))
            return str(reply.error)
        finally:
            transport.close()
            await transport.closed_future

    with Service(tmp_path, refusal=lambda peer: "allow_uids") as service:
        assert asyncio.run(drive(service.path)) == "org.varlink.service.PermissionDenied"


# Interfaces, listen_unix, the peer's identity, the log.


async def nothing(connection: Connection, parameters: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(
    ("name", "methods", "without_more", "message"),
    [
        ("org.example.Other", {}, frozenset(), "does not say 'interface org.example.Other'"),
        ("org.example.Test", {"Ekko": nothing}, frozenset(), "lack Ekko"),
        ("org.example.Test", {"Echo": nothing}, frozenset({"Count"}), "lack Count"),
    ],
)
def test_an_interface_that_its_description_does_not_describe_is_refused(
    name: str, methods: dict[str, Any], without_more: frozenset[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Interface(name, DESCRIPTION, methods, without_more)


def test_two_interfaces_of_one_name_are_refused() -> None:
    twice = [Interface("org.example.Test", DESCRIPTION)] * 2
    InterfaceTable(ServiceInfo("", "", "", ""), twice[:1])
    with pytest.raises(ValueError, match=r"two interfaces are named io\.shmserve"):
        InterfaceTable(ServiceInfo("", "", "", ""), [Interface("io.shmserve", "interface io.shmserve\n")])


def test_a_provoked_log_says_how_much_it_left_out(caplog: pytest.LogCaptureFixture) -> None:
    log = ProvokedLog(logging.getLogger("test"), burst=2)
    for n in range(10):
        log.warning("line %d", n)
    assert [record.getMessage() for record in caplog.records] == ["line 0", "line 1"]
    log._refilled_s -= 1  # a second passes
    log.warning("line %d", 10)
    assert caplog.records[-1].getMessage() == "line 10 (8 such lines left out)"


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_socket_has_exactly_the_mode_asked_for(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with listen_unix(tmp_path / "s", 0o660, gid=os.getgid()):
            status = (tmp_path / "s").stat()
    finally:
        os.umask(before)
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == os.getgid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to a group it is not in")
def test_the_socket_belongs_to_the_group_asked_for(tmp_path: Path) -> None:
    gid = grp.getgrall()[-1].gr_gid
    with listen_unix(tmp_path / "s", 0o660, gid=gid):
        assert (tmp_path / "s").stat().st_gid == gid


def test_a_stale_socket_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listen_unix(path, 0o600).close()
    assert path.is_socket()
    with listen_unix(path, 0o600):
        with pytest.raises(OSError, match="another process listens") as caught:
            listen_unix(path, 0o600)
        assert caught.value.filename == str(path)
    path.unlink()
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="no socket"):
        listen_unix(path, 0o600)
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_refused_with_the_limit(tmp_path: Path) -> None:
    path = tmp_path / ("x" * PATH_LIMIT)
    with pytest.raises(OSError, match=rf"kernel takes {PATH_LIMIT}") as caught:
        listen_unix(path, 0o600)
    assert caught.value.filename == str(path)


DYING_CLIENT = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
print("connected", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("option", [peer_module._SO_PEERPIDFD, 9999], ids=["SO_PEERPIDFD", "pidfd_open"])
def test_the_pidfd_tells_that_the_peer_has_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: int) -> None:
    # 9999 is an option that no kernel has, as SO_PEERPIDFD is to one before 6.5.
    monkeypatch.setattr(peer_module, "_SO_PEERPIDFD", option)
    with listen_unix(tmp_path / "s", 0o600) as listener:
        listener.settimeout(30)
        command = [sys.executable, "-c", DYING_CLIENT, str(tmp_path / "s")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            sock, _ = listener.accept()
            with sock:
                peer = Peer.of(sock)
                assert peer.pid == process.pid
                pidfd = open_pidfd(sock, peer.pid)
                assert pidfd is not None
                assert not os.get_inheritable(pidfd)
                assert not select_readable(pidfd, 0)
                process.kill()
                assert select_readable(pidfd, 30)
                os.close(pidfd)
                process.wait()
                # Reaped: older kernels know nothing of it any more, newer ones give a pidfd that is ready at once.
                with suppress(ProcessLookupError):
                    pidfd = open_pidfd(sock, peer.pid)
                    assert pidfd is not None
                    assert select_readable(pidfd, 0)
                    os.close(pidfd)
