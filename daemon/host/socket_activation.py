"""Listening sockets that systemd has opened before the daemon started (socket activation, sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import MutableMapping
from pathlib import Path

from shmserve.directories import ADMIN_SOCKET, CLIENT_SOCKET

_FIRST = 3
_BACKLOG = 128
#: Names that a socket unit may give its socket (FileDescriptorName=), and the file it is for.
_NAMES = {"client": CLIENT_SOCKET, "admin": ADMIN_SOCKET}


class ActivationError(ValueError):
    """systemd passed a descriptor that is not one of this service's sockets; the message gives it, and the remedy."""


def listen_fds(environment: MutableMapping[str, str], directory: Path) -> dict[str, socket.socket]:
    """Return the sockets that systemd passed, by their file's name (client.sock, admin.sock).

    Takes systemd's variables out of `environment`. Raises ActivationError if a socket is not one of the
    two that clients and operators look for in `directory`.
    """
    for_pid = environment.pop("LISTEN_PID", None)
    count = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    environment.pop("LISTEN_PIDFDID", None)
    if for_pid != str(os.getpid()) or not count.isdigit():
        return {}
    found: dict[str, socket.socket] = {}
    for index in range(int(count)):
        descriptor = _FIRST + index
        given = names[index] if index < len(names) else ""
        sock, path = _listening(descriptor, given)
        # systemd-socket-activate and units without FileDescriptorName= leave only the path to go by.
        file = _NAMES.get(given, path.name)
        if file not in _NAMES.values() or file in found or path != directory / file:
            raise ActivationError(
                f"systemd passed the socket {path} (FileDescriptorName={given or 'none'}), and this service listens "
                f"on {CLIENT_SOCKET} and {ADMIN_SOCKET} in {directory}: correct ListenStream=, or --name and "
                "--runtime-dir"
            )
        found[file] = sock
    return found


def group_may_connect(sock: socket.socket) -> bool:
    """Return whether the socket's file lets its group connect (write)."""
    return bool(os.stat(sock.getsockname()).st_mode & stat.S_IWGRP)


def _listening(descriptor: int, given: str) -> tuple[socket.socket, Path]:
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        name = sock.getsockname()
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ActivationError(f"systemd passed descriptor {descriptor} ({given}), which is not a socket") from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM or not listens or not isinstance(name, str):
        raise ActivationError(
            f"systemd passed {name!r} ({given}), which is not a listening stream socket with a path: use "
            "ListenStream=PATH"
        )
    # A second listen(), so that SO_PEERCRED shows clients this process and not the manager that listened first.
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock, Path(name)
