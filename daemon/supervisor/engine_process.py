"""The supervisor's handle of one engine process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from shmserve.backend import CHOICE

from ..host import descriptors
from ..host.background_process import RETRY_S, move_to_background, move_to_foreground
from ..ipc.control import take_messages
from ..ipc.messages import FROM_ENGINE, EngineMessage, InvalidMessage, Ready, Stop, SupervisorMessage, encode
from ..ipc.release import OWN
from ..ipc.stats import Counter, Stats, create_stats_memory

if TYPE_CHECKING:
    from .deployment import Deployment

log = logging.getLogger(__name__)

_M = TypeVar("_M")

#: A numpy.py in the working directory is not ours. No variable says so: the programs that a policy starts would inherit it.
SAFE_PATH = ("-P",) if sys.version_info >= (3, 11) else ()


class EngineEnded(Exception):
    """The engine's process has ended; its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the engine ended: {exit_reason(status)}")
        self.status = status


class EngineProcess:
    """Starts an engine, carries messages both ways, and knows how it ended.

    The process may be started before it is known what it will serve: `assign` gives it that.
    """

    def __init__(self) -> None:
        #: Number of the engine; 0 until it is assigned.
        self.serial = 0
        self._deployment: Deployment | None = None
        #: The task that stops it, once it is no longer wanted.
        self.retiring: asyncio.Task[None] | None = None
        self._on_message: Callable[[EngineProcess, EngineMessage], None] = lambda engine, message: None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self.stats: Stats | None = None
        #: The supervisor ended it; no client caused its death.
        self.ended_on_purpose = False
        #: Stage of the start, for people.
        self.stage = "load"
        self._in_background = False
        #: When it began to serve (CLOCK_MONOTONIC); None before.
        self.served_from_s: float | None = None
        #: None until it is warm.
        self.ready: Ready | None = None
        #: Entries of the first observation that a model without an example has answered.
        self.first_observation: dict[str, Any] | None = None
        self._awaited: dict[type, asyncio.Future[Any]] = {}

    def assign(
        self, serial: int, deployment: Deployment, on_message: Callable[[EngineProcess, EngineMessage], None]
    ) -> None:
        """Give it what it is to serve, its number, and the function that is called with each of its messages."""
        self.serial, self._deployment, self._on_message = serial, deployment, on_message

    @property
    def deployment(self) -> Deployment:
        assert self._deployment is not None
        return self._deployment

    @property
    def in_background(self) -> bool:
        """Whether it yields the processors to the others, and the kernel ends it first when memory runs out."""
        return self._in_background

    @in_background.setter
    def in_background(self, wanted: bool) -> None:
        if wanted == self._in_background or not self.alive:
            return
        self._in_background = wanted
        self._set_priority()

    def _set_priority(self) -> None:
        move = move_to_background if self._in_background else move_to_foreground
        if self.alive and not move(self.pid):
            self._loop.call_later(RETRY_S, self._set_priority)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Exec the engine; a fork would share the supervisor's memory and torch forbids it after CUDA."""
        ours, theirs = socket.socketpair()
        stats_fd = create_stats_memory()
        try:
            self.stats = Stats(stats_fd)
            self._process = _spawn(theirs.fileno(), stats_fd)
            threading.Thread(target=self._await_end, name=f"engine-{self.pid}", daemon=True).start()
        except BaseException as error:
            ours.close()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            if isinstance(error, RuntimeError):
                raise OSError(errno.EAGAIN, f"no thread can be started to wait for an engine: {error}") from error
            raise
        finally:
            theirs.close()
            os.close(stats_fd)
        descriptors.restore_limit(self._process.pid)
        ours.setblocking(False)
        self._socket = ours
        self._loop.add_reader(ours, self._readable)

    def send(self, message: SupervisorMessage, *, fds: Sequence[int] = ()) -> None:
        """Queue a message and raise the engine's control word, so that it looks; `fds` stay the caller's."""
        if self._socket is None:
            return
        copies = tuple(os.dup(descriptor) for descriptor in fds)  # the caller may close its own before they are sent
        self._unsent.append((encode(message, len(copies)), copies))
        self._flush()
        if self.stats is not None:
            self.stats.words[Counter.CONTROL] += 1

    def _flush(self) -> None:
        assert self._socket is not None
        try:
            while self._unsent:
                data, fds = self._unsent[0]
                sent = socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
                _close_all(fds)
                self._unsent[0] = data[sent:], ()
                if sent == len(data):
                    self._unsent.popleft()
        except BlockingIOError:
            # The engine is busy with a long inference: the rest goes when it has read.
            self._loop.add_writer(self._socket, self._flush)
            return
        except OSError:
            self._drop_unsent()  # it is gone; wait() tells
        self._loop.remove_writer(self._socket)

    def _drop_unsent(self) -> None:
        while self._unsent:
            _close_all(self._unsent.popleft()[1])

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket)
            return
        self._received += data
        try:
            for message, _ in take_messages(self._received, FROM_ENGINE):
                self._take(message)
        except InvalidMessage as error:
            log.error("engine %d sent an invalid message (%s): killing it", self.pid, error)
            self._received.clear()
            self.ended_on_purpose = True
            self.kill()

    def _take(self, message: EngineMessage) -> None:
        if isinstance(message, Ready):
            self.ready = message
        self._on_message(self, message)
        awaited = self._awaited.pop(type(message), None)
        if awaited is not None and not awaited.done():
            awaited.set_result(message)

    def expect(self, kind: type[_M]) -> asyncio.Future[_M]:
        """The next message of this kind; EngineEnded if the process ends first."""
        future: asyncio.Future[_M] = self._loop.create_future()
        # The exception may never be retrieved: an update can be cancelled while it waits.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._process is not None and self._process.returncode is not None:
            future.set_exception(EngineEnded(self._process.returncode))
        else:
            self._awaited[kind] = future
        return future

    def _await_end(self) -> None:
        """Wait, in a thread for this process, for its end; it stays a zombie."""
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(RuntimeError):  # the loop is closed: this process ends as well
            self._loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        """End what the model has started, and let the process go."""
        assert self._process is not None
        # ORDER: the group before the reaping, after which its number can be that of another.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._ended.set_result(self._process.wait())

    async def wait(self) -> int:
        """Until the process has ended; its exit status (negative: the signal that ended it)."""
        status = await asyncio.shield(self._ended)
        if self._socket is not None:
            self._readable()  # its last words
        for future in self._awaited.values():
            if not future.done():
                future.set_exception(EngineEnded(status))
        self._awaited.clear()
        return status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; a process that has ended already is ignored."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)  # not by Popen, which would look whether it has ended, and reap it

    async def stop(self, timeout_s: float) -> None:
        """Ask it to stop after what is under way, then insist."""
        if self._process is None or self._process.returncode is not None:
            return
        self.send(Stop())
        try:
            await asyncio.wait_for(self.wait(), timeout_s)
        except asyncio.TimeoutError:
            log.warning("engine %d did not stop within %g s: killing it", self.pid, timeout_s)
            self.kill()
            await self.wait()

    def close(self) -> None:
        """Close the descriptors and the stats."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket = None
        self._drop_unsent()
        if self.stats is not None:
            self.stats.close()
            self.stats = None


def _spawn(control: int, stats: int) -> subprocess.Popen[bytes]:
    # Not by asyncio, which reaps it by itself: see `EngineProcess._reap`.
    command = [sys.executable, *SAFE_PATH, "-m", "shmserve.daemon.engine.main"]
    return subprocess.Popen(
        [*command, str(control), str(stats), *OWN, str(os.getpid())],
        pass_fds=(control, stats),
        env={**os.environ, **CHOICE},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # so that what the model starts is known by its group, and ends with it
    )


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def exit_reason(status: int) -> str:
    """How a process ended, for people.

    >>> exit_reason(-11), exit_reason(3)
    ('killed by SIGSEGV', 'exit status 3')
    """
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-status).name}"
    return f"killed by signal {-status}"
