"""A varlink server in this process for the tests, and what they say to it by hand."""

from __future__ import annotations

import array
import asyncio
import gc
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, final

from shmserve.daemon.varlink.connection import ConnectionLimits
from shmserve.daemon.varlink.interface import Connection, Interface, Method, ServiceInfo
from shmserve.daemon.varlink.peer import Peer
from shmserve.daemon.varlink.server import VarlinkServer, listen_unix
from shmserve.varlink import MESSAGE_LIMIT, Reply, VarlinkError, optional, required
from shmserve.varlink_connection import VarlinkConnection
from tests.support.daemon_process import wait_until

DESCRIPTION = """\
# For the tests.
interface org.example.Test

method Echo(text: string) -> (text: string)
method Count(to: int, fail: ?string) -> (n: ?int)
method Fail(how: string) -> ()
method Wait() -> ()
method TakeFds(keep: ?int) -> (sizes: []int)
method GiveFd(size: int) -> ()
method GiveFds(count: int, padding: ?int) -> (count: int, padding: string)
method Missing() -> ()

error Refused (why: string)
"""
SECRET = "/secret/path"


@final
class Service:
    """The server in a thread of its own. Leaving it checks that no descriptor is left over in this process."""

    def __init__(
        self, folder: Path, limits: ConnectionLimits | None = None, refusal: Callable[[Peer], str | None] | None = None
    ):
        self.path = str(folder / "test.sock")
        self.limits = limits or ConnectionLimits()
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
            "GiveFd": self.give_fd,
            "GiveFds": self.give_fds,
        }
        return Interface("org.example.Test", DESCRIPTION, methods)

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

    async def give_fd(self, connection: Connection, parameters: dict[str, Any], fds: list[int]) -> Reply:
        return Reply({}, fds=(memory_file(required(parameters, "size", int)),))

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
        gc.collect()  # descriptors of earlier tests are none of this service's
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
            # Of the server, or of an object that a collection of garbage ends meanwhile.
            wait_until("its descriptors are closed", lambda: sorted(os.listdir("/proc/self/fd")) == self.fds)

    def open_connections(self) -> list[int]:
        """The numbers of the connections that are served now, by the names of their tasks."""
        prefix = "varlink connection "
        names = [task.get_name() for task in asyncio.all_tasks(self.loop)]
        return sorted(int(name.removeprefix(prefix)) for name in names if name.startswith(prefix))

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


ERROR = b'{"error":"%s","parameters":%s}\0'
