"""Identity of the process at the other end of a Unix socket, and a descriptor that reports its death."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path

_SO_PEERGROUPS = 59  # Linux 4.13; neither number is in Python's socket module
SO_PEERPIDFD = 77  # Linux 6.5
_UCRED = struct.Struct("=iII")
_GETSOCKOPT_BYTES = 1024  # the most that Python's getsockopt() takes: 256 groups


@dataclass(frozen=True)
class Peer:
    """The process that called connect(2), as it was then. `pid` is for people: it may name another process by now."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]
    #: When the process began, in clock ticks since the machine did: two processes with one number differ in it.
    #: 0 where /proc does not show it.
    started: int = field(default=0, compare=False)

    @classmethod
    def of(cls, sock: socket.socket) -> Peer:
        pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return cls(pid, uid, gid, _groups(sock), _started(pid))

    @property
    def all_groups(self) -> frozenset[int]:
        """Its supplementary groups (SO_PEERGROUPS) and its own."""
        return self.groups | {self.gid}

    def __str__(self) -> str:
        return f"uid {self.uid}, pid {self.pid}"


def _started(pid: int) -> int:
    try:
        # The second field, the program's name, may hold anything; the 22nd is the time.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def open_pidfd(sock: socket.socket, pid: int, option: int = SO_PEERPIDFD) -> int | None:
    """A pidfd of the process that connected; the caller closes it. None where the kernel cannot tell.

    Raises ProcessLookupError if that process is gone.
    """
    try:
        return sock.getsockopt(socket.SOL_SOCKET, option)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        # ESRCH, which is a ProcessLookupError: the peer was reaped. EINVAL: early kernels' word for the same.
        if error.errno not in (errno.ENOPROTOOPT, errno.EINVAL):
            raise
    # A kernel before 6.5: between connect() and here the number may have been given to another process, whose death
    # then stands for the peer's. The end of the stream is the other sign, and it cannot be mistaken.
    if pid == 0:  # the peer lives in a pid namespace that this one cannot see
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return None
        raise


def _groups(sock: socket.socket) -> frozenset[int]:
    try:
        content = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GETSOCKOPT_BYTES)
    except OSError as error:
        # More groups than fit, or an old kernel: nothing is granted by a group that was not seen.
        if error.errno in (errno.ERANGE, errno.ENOPROTOOPT):
            return frozenset()
        raise
    return frozenset(gid for (gid,) in struct.iter_unpack("=I", content))
