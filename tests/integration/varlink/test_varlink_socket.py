"""The Unix socket of the varlink server, and who is at its other end."""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from shmserve.daemon.varlink.peer import SO_PEERPIDFD, Peer, open_pidfd
from shmserve.daemon.varlink.server import listen_unix
from shmserve.varlink_socket import PATH_LIMIT


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_socket_has_exactly_the_mode_asked_for(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with listen_unix(tmp_path / "s", 0o660):
            status = (tmp_path / "s").stat()
    finally:
        os.umask(before)
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == os.getgid()


@pytest.mark.fault("T55")
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
    with pytest.raises(FileExistsError, match="not a socket"):
        listen_unix(path, 0o600)
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_refused_with_the_limit(tmp_path: Path) -> None:
    path = tmp_path / ("x" * PATH_LIMIT)
    with pytest.raises(OSError, match=rf"kernel takes {PATH_LIMIT}") as caught:
        listen_unix(path, 0o600)
    assert caught.value.filename == str(path)


def select_readable(fd: int, timeout_s: float) -> bool:
    return bool(select.select([fd], [], [], timeout_s)[0])


DYING_CLIENT = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
print("connected", flush=True)
sys.stdin.read()
"""


@pytest.mark.fault("T48")
@pytest.mark.parametrize("option", [SO_PEERPIDFD, 9999], ids=["SO_PEERPIDFD", "pidfd_open"])
def test_the_pidfd_tells_that_the_peer_has_died(tmp_path: Path, option: int) -> None:
    # 9999 is an option that no kernel has, as SO_PEERPIDFD is to one before 6.5.
    with listen_unix(tmp_path / "s", 0o600) as listener:
        listener.settimeout(30)
        command = [sys.executable, "-c", DYING_CLIENT, str(tmp_path / "s")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            sock, _ = listener.accept()
            with sock:
                peer = Peer.of(sock)
                assert peer.pid == process.pid
                pidfd = open_pidfd(sock, peer.pid, option)
                assert pidfd is not None
                assert not os.get_inheritable(pidfd)
                assert not select_readable(pidfd, 0)
                process.kill()
                assert select_readable(pidfd, 30)
                os.close(pidfd)
                process.wait()
                # Reaped: older kernels know nothing of it any more, newer ones give a pidfd that is ready at once.
                with suppress(ProcessLookupError):
                    pidfd = open_pidfd(sock, peer.pid, option)
                    assert pidfd is not None
                    assert select_readable(pidfd, 0)
                    os.close(pidfd)
