"""Whom a client lets run code in its process: nobody but its own user and root, whoever seems to be listening."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmserve.client.capacity import SlotCapacity
from shmserve.client.connection import Connection
from shmserve.directories import CLIENT_SOCKET
from tests.support.stranger_process import UID, Stranger, needs_root


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A client's socket on which root listens, as systemd does before the daemon has started."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / CLIENT_SOCKET))
        sock.listen()
        yield sock


@needs_root
@pytest.mark.parametrize(
    ("uid", "memory", "trusted"), [(0, "makes", True), (UID, "makes", False), (UID, "passes-on", False)]
)
def test_a_daemon_behind_root_s_socket_is_trusted_only_with_memory_that_none_but_root_can_have_written(
    tmp_path: Path, listener: socket.socket, uid: int, memory: str, trusted: bool
) -> None:
    with Stranger("impostor", listener.fileno(), uid, memory, fds=(listener.fileno(),)) as impostor:
        attachment = Connection.open("t", tmp_path, SlotCapacity(1), 30.0)
        try:
            assert attachment.trusted is trusted
            assert attachment.channel.replies.segment.file.st_uid == (UID if memory == "makes" and uid else 0)
            assert impostor.says() == str((uid, uid, uid))
        finally:
            attachment.close()
