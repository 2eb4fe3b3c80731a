"""A caller's varlink connection: blocking calls over a Unix socket, each with a timeout."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, final

from shmserve.varlink import Reply, VarlinkError, VarlinkProtocolError, decode_reply, encode_call
from shmserve.varlink_socket import MessageReader, close_fds, send_part, socket_path

_BACKLOG_RETRY_S = 0.01
_UCRED = struct.Struct("=iII")  # pid, uid, gid
_POLL_S = 3600.0  # poll(2) counts milliseconds in an int


@final
class VarlinkConnection:
    """For one thread at a time. Calls are answered in order, so a reply that came too late for its call, or
    without a waiting caller, is dropped when the next call is made; the connection stays usable.
    """

    def __init__(self, sock: socket.socket, *, accept_fds: int = 0) -> None:
        # Never blocking: peer_closed() is one system call, and every wait is a poll() with a deadline.
        sock.setblocking(False)
        self._sock = sock
        self._reader = MessageReader(sock, accept_fds)
        self._replies: deque[tuple[bytes, list[int]]] = deque()
        self._calls = 0
        self._answered = 0  # calls whose last reply was read
        self._last_word: VarlinkError | None = None

    @classmethod
    def connect(
        cls, path: str | os.PathLike[str], timeout_s: float | None, *, accept_fds: int = 0
    ) -> VarlinkConnection:
        """Raises what connect(2) gives (FileNotFoundError, ConnectionRefusedError, PermissionError), with the path,
        and TimeoutError. A reply may bring up to `accept_fds` file descriptors.
        """
        name = socket_path(path)
        deadline = _deadline(timeout_s)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            while True:
                try:
                    sock.connect(name)
                    return cls(sock, accept_fds=accept_fds)
                except BlockingIOError:  # the backlog is full; a Unix socket offers nothing to poll for here
                    if _remaining_s(deadline) <= 0:
                        raise TimeoutError(f"{name} accepted no connection within {timeout_s} s") from None
                    time.sleep(_BACKLOG_RETRY_S)
        except OSError as error:
            sock.close()
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, name) from None
        except BaseException:
            sock.close()
            raise

    def call(
        self,
        method: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None,
        fds: Sequence[int] = (),
    ) -> Reply:
        """The reply, whose `fds` are now the caller's to close; the caller keeps `fds`, the argument, open and owned.

        Raises VarlinkError for an error reply, TimeoutError, ConnectionError when the service closed the connection,
        and VarlinkProtocolError (the connection is closed then).
        """
        deadline = _deadline(timeout_s)
        number = self._send(encode_call(method, parameters), fds, deadline)
        return self._reply_to(number, method, deadline)

    def call_more(
        self,
        method: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None,
        fds: Sequence[int] = (),
    ) -> Iterator[Reply]:
        """Sends the call at once; the iterator gives each reply. `timeout_s` is for each of them. Raises as call()."""
        number = self._send(encode_call(method, parameters, more=True), fds, _deadline(timeout_s))

        def replies() -> Iterator[Reply]:
            while True:
                reply = self._reply_to(number, method, _deadline(timeout_s))
                yield reply
                if not reply.continues:
                    return

        return replies()

    def fileno(self) -> int:
        return self._sock.fileno()

    def peer_uid(self) -> int:
        """The user of the process that listens, as it was when that called listen(2)."""
        uid: int = _UCRED.unpack(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
        return uid

    def peer_closed(self) -> bool:
        """Whether the service has closed the connection; its earlier replies can still be read. Never waits."""
        if self.fileno() < 0:
            return True
        # Its own object each time: two threads may ask, and one object serves one at a time.
        poll = select.poll()
        try:
            poll.register(self._sock, select.POLLRDHUP)
        except ValueError:  # closed since the line above, by a signal handler or another thread
            return True
        return bool(poll.poll(0))

    def farewell(self) -> VarlinkError | None:
        """The error that the service sent before it closed the connection, and that answers no call; for when
        `peer_closed` is true and no call is under way.
        """
        if self._last_word is None and self.fileno() >= 0:
            with suppress(OSError, VarlinkProtocolError):
                while messages := self._reader.read():
                    for message, fds in messages:
                        close_fds(fds)
                        reply = decode_reply(message)
                        if reply.error is not None:
                            self._last_word = VarlinkError(reply.error, reply.parameters)
        return self._last_word

    def shut_down(self) -> None:
        """End the call that another thread has under way, which would sleep on through a mere close()."""
        with suppress(OSError):  # it was closed, or the service has
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """May be called twice."""
        self._sock.close()
        self._reader.close()
        self._replies.clear()  # no descriptors there: a read that may bring some brings one reply, taken at once

    def __enter__(self) -> VarlinkConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, data: bytes, fds: Sequence[int], deadline: float | None) -> int:
        if self.fileno() < 0:
            raise ConnectionAbortedError("the connection is closed on this side: connect again")
        rest = memoryview(data)
        try:
            while rest:
                try:
                    sent = send_part(self._sock, rest, fds)
                    rest, fds = rest[sent:], ()
                except BlockingIOError:
                    self._wait(select.POLLOUT, deadline, "the service reads no calls")
        except ConnectionError:
            # A service that refuses a connection sends the reason before it closes; it can still be read.
            self._calls += 1
            return self._calls - 1
        except BaseException:
            self.close()  # half a call may have gone
            raise
        self._calls += 1
        return self._calls - 1

    def _reply_to(self, number: int, method: str, deadline: float | None) -> Reply:
        while True:
            if self._answered > number:
                raise RuntimeError(f"the replies to {method} were dropped when another call was made")
            try:
                message, fds = self._next_message(method, deadline)
            except TimeoutError:
                raise
            except BaseException:
                self.close()
                raise
            try:
                reply = decode_reply(message)
            except VarlinkProtocolError:
                close_fds(fds)
                self.close()
                raise
            answers = self._answered
            self._answered += not reply.continues
            if answers == number and reply.error is None:
                return Reply(reply.parameters, reply.continues, fds=tuple(fds))
            close_fds(fds)
            if answers == number and reply.error is not None:
                raise VarlinkError(reply.error, reply.parameters)

    def _next_message(self, method: str, deadline: float | None) -> tuple[bytes, list[int]]:
        while not self._replies:
            if self.fileno() < 0:
                raise ConnectionAbortedError("the connection is closed on this side: connect again")
            try:
                messages = self._reader.read()
            except BlockingIOError:
                self._wait(select.POLLIN, deadline, f"no reply to {method}")
                continue
            if messages is None:
                raise ConnectionResetError(f"the service closed the connection before it answered {method}")
            self._replies += messages
        return self._replies.popleft()

    def _wait(self, event: int, deadline: float | None, what: str) -> None:
        """Until `event` or a spurious wake-up; TimeoutError once the deadline has passed."""
        remaining_s = _remaining_s(deadline)
        if remaining_s <= 0:
            raise TimeoutError(f"{what} within the call's timeout")
        poll = select.poll()
        poll.register(self._sock, event)
        poll.poll(min(remaining_s, _POLL_S) * 1000)


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _remaining_s(deadline: float | None) -> float:
    return float("inf") if deadline is None else deadline - time.monotonic()
