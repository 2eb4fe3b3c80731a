"""Transfer of varlink bytes and their file descriptors through a Unix socket, one system call at a time."""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Iterable, Sequence

from shmserve.varlink import DescriptorsLost, Framer, VarlinkProtocolError

READ_BYTES = 64 * 1024
PATH_LIMIT = 107  # sockaddr_un.sun_path is 108 bytes, the last of them NUL (unix(7))


def socket_path(path: str | os.PathLike[str]) -> str:
    """`path` as text; OSError (ENAMETOOLONG) if no Unix socket can have this name."""
    text = os.fspath(path)
    length = len(os.fsencode(text))
    if length > PATH_LIMIT:
        raise OSError(
            errno.ENAMETOOLONG,
            f"the path of a Unix socket is {length} bytes long and the kernel takes {PATH_LIMIT}: "
            "choose a shorter runtime directory",
            text,
        )
    return text


class MessageReader:
    """Whole messages from a socket, each with the descriptors that were sent with it (up to `accept_fds`)."""

    def __init__(self, sock: socket.socket, accept_fds: int) -> None:
        self._sock = sock
        self._accept_fds = accept_fds
        self._framer = Framer()
        self._fds: list[int] = []  # came with the message whose end has not arrived

    @property
    def pending_bytes(self) -> int:
        """Bytes of a message whose end has not arrived."""
        return self._framer.pending_bytes

    def read(self) -> list[tuple[bytes, list[int]]] | None:
        """The messages that one read completes, their descriptors now the caller's; None at the end of the stream.

        Raises BlockingIOError when nothing waits on a socket that does not block, and VarlinkProtocolError for a
        message with too many bytes or descriptors.
        """
        data, fds = receive_part(self._sock, self._accept_fds)
        self._fds += fds
        if len(self._fds) > self._accept_fds:
            raise VarlinkProtocolError(_too_many(self._accept_fds))
        if not data:
            return None
        messages = []
        for message in self._framer.feed(data):
            messages.append((message, self._fds))  # with descriptors to take, a read ends at the first message's end
            self._fds = []
        return messages

    def close(self) -> None:
        """Closes descriptors, and leaves the socket to its owner. May be called twice."""
        close_fds(self._fds)
        self._fds = []


def receive_part(sock: socket.socket, accept_fds: int) -> tuple[bytes, list[int]]:
    """One read: bytes (none at the end of the stream), and up to `accept_fds` descriptors, close-on-exec.

    With `accept_fds` it never reads past the end of a message, because the kernel hands descriptors out with any read
    that touches the bytes of their sendmsg(), whatever came before these. Without it, the read has no room for
    descriptors and the kernel drops them. Raises as MessageReader.read().
    """
    if not accept_fds:
        return sock.recv(READ_BYTES), []
    waiting = sock.recv(READ_BYTES, socket.MSG_PEEK)
    if not waiting:
        return b"", []
    data, fds, of_more = receive_with_fds(sock, waiting.find(b"\0") + 1 or len(waiting), accept_fds)
    if of_more is not None:
        if of_more < accept_fds:  # not for want of room in the message
            raise DescriptorsLost("file descriptors came with a message, and this process may have no more")
        raise VarlinkProtocolError(_too_many(accept_fds))
    return data, fds


def receive_with_fds(sock: socket.socket, size: int, accept_fds: int) -> tuple[bytes, list[int], int | None]:
    """One recvmsg(2): bytes, descriptors (close-on-exec), and None if these are all that were sent.

    If not, because they are more than `accept_fds` or this process has no room for more, none are given, and the last is
    the number of those that had arrived.
    """
    # Not socket.recv_fds(), which forgets its flags in several versions of Python: children would inherit what comes.
    # CMSG_LEN, not CMSG_SPACE: the padding would hold one descriptor more.
    room = socket.CMSG_LEN(accept_fds * array.array("i").itemsize)
    data, messages, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        close_fds(fds)
        return data, [], len(fds)
    return data, list(fds), None


def send_part(sock: socket.socket, data: memoryview, fds: Sequence[int]) -> int:
    """One write: how many bytes went; `fds` went with the first of them."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def close_fds(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _too_many(accept_fds: int) -> str:
    return f"more than {accept_fds} file descriptors came with a message"
