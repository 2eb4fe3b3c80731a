"""One peer's connection: its calls, their replies in order, and the end of the peer."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from shmserve.varlink import PROTOCOL_VIOLATION, VarlinkError, VarlinkProtocolError, decode_call, encode_error
from shmserve.varlink_socket import MessageReader, close_fds, send_part

from .interface import InterfaceTable
from .log_limit import ProvokedLog
from .peer import Peer


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of one listening socket for its peers."""

    connections: int = 256
    connections_per_uid: int = 64
    refused: int = 16  # connections that wait for their refusal at a time
    message_timeout_s: float = 5.0  # for the first message, and for each whose beginning has arrived
    write_timeout_s: float = 5.0  # for a peer to take one reply
    accept_fds: int = 0  # descriptors that may come with one message; with 0 the kernel drops them


class ServerConnection:
    """`closed` is done once the connection is over; its result says why.

    The pidfd is watched as well as the stream, because a child that the peer forked keeps the stream open after the
    peer has died.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        pidfd: int | None,
        number: int,
        table: InterfaceTable,
        limits: ConnectionLimits,
        log: ProvokedLog,
        refusal: VarlinkError | None = None,
    ) -> None:
        """Takes over `sock` and `pidfd`. With a `refusal`, the peer's first call gets that error and the connection closes."""
        self.peer = peer
        self.pidfd = pidfd
        self.number = number
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self._sock = sock
        self._table = table
        self._limits = limits
        self._log = log
        self.refusal = refusal
        self._reader = MessageReader(sock, 0 if refusal else limits.accept_fds)
        self._waiting: deque[tuple[bytes, list[int]] | VarlinkProtocolError] = deque()
        self._arrived = asyncio.Event()
        self._greeted = False  # a first message was complete
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self) -> asyncio.Task[None]:
        """Start to serve the peer. The task outlives `closed` by what a cancelled method takes to clean up."""
        if self.pidfd is not None:
            self._loop.add_reader(self.pidfd, self.close, "its process ended")
        self._resume_reading()
        self._task = self._loop.create_task(self._serve(), name=f"varlink connection {self.number}")
        return self._task

    def close(self, reason: str) -> None:
        """Close the connection: cancel the running method and drop waiting calls; may be called twice."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        self._pause_reading()
        self._loop.remove_writer(self._sock)
        self._sock.close()
        if self.pidfd is not None:
            self._loop.remove_reader(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = None
        self._reader.close()
        for item in self._waiting:
            if not isinstance(item, VarlinkProtocolError):
                close_fds(item[1])
        self._waiting.clear()
        if self._task is not None and self._task is not asyncio.current_task(self._loop):
            self._task.cancel()

    def say_farewell(self, error: str, parameters: Mapping[str, Any]) -> None:
        """Close the connection after one error that answers no call, if the socket has room for it."""
        if not self.closed.done():
            with suppress(OSError):
                send_part(self._sock, memoryview(encode_error(error, parameters)), ())
        self.close(error)

    def _give_up(self, reason: str) -> None:
        self._log.warning("closing the connection of %s: %s", self.peer, reason)
        self.close(reason)

    # Reading: from the socket into `_waiting`. It pauses while a call waits behind the one in hand, so that a peer
    # holds at most one read's worth of calls here; until then it goes on, because it is how a hang-up is noticed.

    def _resume_reading(self) -> None:
        self._loop.add_reader(self._sock, self._read)
        self._start_timer()

    def _pause_reading(self) -> None:
        self._loop.remove_reader(self._sock)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self) -> None:
        # Never moved by the next byte: a peer that sends one a second gains nothing.
        if self._timer is None and (self._reader.pending_bytes or not self._greeted):
            timeout_s = self._limits.message_timeout_s
            self._timer = self._loop.call_later(timeout_s, self._give_up, f"no complete message in {timeout_s} s")

    def _read(self) -> None:
        try:
            messages = self._reader.read()
        except BlockingIOError:
            return
        except VarlinkProtocolError as error:
            self._waiting.append(error)  # sent in its turn: now, it would look like the answer to the call in hand
        except OSError as error:
            self.close(f"reading failed: {error.strerror}")
            return
        else:
            if messages is None:
                self.close("the peer closed it")
                return
            self._waiting += messages
        if self._waiting:
            self._greeted = True
            self._pause_reading()
            self._arrived.set()
        else:
            self._start_timer()

    async def _next(self) -> tuple[bytes, list[int]]:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        item = self._waiting.popleft()
        if isinstance(item, VarlinkProtocolError):
            raise item
        if not self._waiting:
            self._resume_reading()
        return item

    # Answering: one task, so that replies keep the order of the calls.

    async def _serve(self) -> None:
        try:
            while not self.closed.done():
                await self._answer(*await self._next())
        except VarlinkProtocolError as error:
            await self._send(encode_error(PROTOCOL_VIOLATION, {"reason": str(error)}), ())
            self._give_up(str(error))
        finally:
            self.close("it could not be served")

    async def _answer(self, message: bytes, fds: list[int]) -> None:
        try:
            if self.refusal is not None:
                await self._send(encode_error(self.refusal.error, self.refusal.parameters), ())
                self.close("refused")
                return
            call = decode_call(message)
            async with aclosing(self._table.replies(call, self, fds, self._log)) as replies:
                async for data, reply_fds in replies:
                    if call.oneway:
                        close_fds(reply_fds)
                    else:
                        await self._send(data, reply_fds)
        finally:
            close_fds(fds)

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        """Send a reply and close `fds`; close the connection if it cannot send."""
        deadline_s = self._loop.time() + self._limits.write_timeout_s
        rest, rest_fds = memoryview(data), fds
        try:
            while rest and not self.closed.done():
                try:
                    sent = send_part(self._sock, rest, rest_fds)
                    rest, rest_fds = rest[sent:], ()
                except BlockingIOError:
                    await self._writable(deadline_s)
        except asyncio.TimeoutError:  # before OSError: on Python 3.11 and later it is one
            self._give_up(f"it did not read a reply in {self._limits.write_timeout_s} s")
        except OSError as error:
            self.close(f"writing failed: {error.strerror}")
        finally:
            close_fds(fds)

    async def _writable(self, deadline_s: float) -> None:
        ready = asyncio.Event()
        self._loop.add_writer(self._sock, ready.set)
        try:
            await asyncio.wait_for(ready.wait(), deadline_s - self._loop.time())
        finally:
            if not self.closed.done():
                self._loop.remove_writer(self._sock)
