"""Varlink server on one listening Unix socket: access, limits, and the refusal of other peers."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterable

from shmserve.varlink import PERMISSION_DENIED, TOO_MANY_CONNECTIONS, VarlinkError, encode_error
from shmserve.varlink_socket import send_part, socket_path

from .connection import ConnectionLimits, ServerConnection
from .interface import Interface, InterfaceTable, ServiceInfo
from .log_limit import ProvokedLog
from .peer import Peer, open_pidfd

_BACKLOG = 128
_ACCEPTS_A_TURN = 16  # then the loop looks at the connections that are open
_PAUSE_S = 0.1


class VarlinkServer:
    """For one event loop; `close` and the rest are not for other threads."""

    def __init__(
        self,
        listener: socket.socket,
        info: ServiceInfo,
        interfaces: Iterable[Interface],
        *,
        refusal: Callable[[Peer], str | None],
        is_reserved: Callable[[Peer], bool] = lambda peer: False,
        limits: ConnectionLimits | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        """Take over `listener`, whose path stays the caller's to unlink.

        `refusal` names the setting that keeps a peer out, or None for one that is served. Peers for whom `is_reserved`
        have as many connections to themselves as the others have together.
        """
        self._listener = listener
        self._table = InterfaceTable(info, interfaces)
        self._refusal = refusal
        self._is_reserved = is_reserved
        self._limits = limits or ConnectionLimits()
        self._log = ProvokedLog(log or logging.getLogger(__name__))
        self._connections: dict[int, ServerConnection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self._accepting = False
        self._resume: asyncio.TimerHandle | None = None
        self._accepted = 0

    async def serve(self) -> None:
        """Serve until close() is called or this task is cancelled; return when every connection's task has ended."""
        try:
            if self._listener.fileno() >= 0:
                self._listener.setblocking(False)
                self._start_accepting()
            await self._closed.wait()
        finally:
            self.close()
            while self._tasks:
                await asyncio.wait(self._tasks)

    def stop_accepting(self) -> None:
        """Close the listener and leave the connections: the beginning of a drain. May be called twice."""
        if self._listener.fileno() < 0:
            return
        self._pause_accepting()
        self._listener.close()

    def close(self) -> None:
        """Close the listener and every connection. May be called twice."""
        self.stop_accepting()
        for connection in list(self._connections.values()):
            connection.close("the service closed it")
        self._closed.set()

    def _start_accepting(self) -> None:
        self._resume = None
        self._accepting = True
        asyncio.get_running_loop().add_reader(self._listener, self._accept_some)

    def _pause_accepting(self) -> None:
        if self._accepting:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._accepting = False
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None

    def _accept_some(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._rest(error)
                return
            try:
                self._admit(sock)
            except ProcessLookupError:  # it died in the backlog
                sock.close()
            except OSError as error:
                sock.close()
                self._rest(error)
                return
            except BaseException:
                sock.close()
                raise

    def _rest(self, error: OSError) -> None:
        """Stop accepting for a while: otherwise the loop would spin on an accept that fails without a free descriptor.

        Peers in the backlog only wait longer.
        """
        self._log.warning("accepting no connection for %s s: %s", _PAUSE_S, error.strerror)
        self._pause_accepting()
        self._resume = asyncio.get_running_loop().call_later(_PAUSE_S, self._start_accepting)

    def _admit(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        peer = Peer.of(sock)
        refusal = self._refusal_of(peer)
        # Rejected connections do not count against the limit: they have a separate quota.
        quota = (refusal is None, self._is_reserved(peer))
        alike = [
            held for held in self._connections.values() if (held.refusal is None, self._is_reserved(held.peer)) == quota
        ]
        of_uid = sum(held.peer.uid == peer.uid for held in alike)
        limits = self._limits
        for count, limit in (
            (len(alike), limits.connections if refusal is None else limits.refused),
            (of_uid, limits.connections_per_uid),
        ):
            if count >= limit:
                self._turn_away(sock, peer, limit)
                return
        pidfd = open_pidfd(sock, peer.pid)
        self._accepted += 1
        connection = ServerConnection(sock, peer, pidfd, self._accepted, self._table, self._limits, self._log, refusal)
        self._connections[connection.number] = connection
        connection.closed.add_done_callback(lambda _: self._connections.pop(connection.number))
        try:
            task = connection.open()
        except BaseException:
            connection.close("it could not be watched")
            raise
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _refusal_of(self, peer: Peer) -> VarlinkError | None:
        """Return the error for a peer that may not use the socket: it is sent with its first call, because a varlink client
        takes no reply before it has called."""
        setting = self._refusal(peer)
        if setting is None:
            return None
        self._log.warning("refusing %s: %s does not name this user", peer, setting)
        return VarlinkError(PERMISSION_DENIED, {"setting": setting})

    def _turn_away(self, sock: socket.socket, peer: Peer, limit: int) -> None:
        """Refuse a connection at once: one that waited for its first call would hold a descriptor. The peer may miss the reason."""
        self._log.warning("turning %s away: there are %d connections already", peer, limit)
        try:
            send_part(sock, memoryview(encode_error(TOO_MANY_CONNECTIONS, {"limit": limit})), ())
        except OSError:  # it has gone already
            pass
        finally:
            sock.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # what fails outside a method is a bug here; the loop reports what is raised in a callback


def listen_unix(path: str | os.PathLike[str], mode: int) -> socket.socket:
    """Return a listening socket at `path` with exactly this mode, independent of the umask.

    Removes a socket file that a dead process left; the caller holds the lock that keeps a second daemon from doing
    the same at this moment. Raises OSError: EADDRINUSE if another process listens there, EEXIST if the file is not a socket,
    ENAMETOOLONG if no Unix socket can have the name.
    """
    name = socket_path(path)
    _remove_stale(name)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(name)
        # No peer can connect before listen(), so that the mode that the umask gave is never in force.
        os.chmod(name, mode)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(name: str) -> None:
    try:
        kind = os.lstat(name).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(errno.EEXIST, "a file that is not a socket is in its place: remove it", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            os.unlink(name)
            return
        except BlockingIOError:  # a full backlog: another process listens
            pass
    raise OSError(errno.EADDRINUSE, "another process listens on this socket: stop it, or take another name", name)
