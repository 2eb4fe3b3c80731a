"""A proxy on the robot that is not there: forwards a Unix socket to a port, and can be cut like a network cable.

    python -m tests.support.relay PATH PORT

relays until its standard input ends; it prints a line when it listens.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_PIECE = 1 << 16


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Relay:
    """Listens on `path` while it is up; `silence` keeps connections open and passes nothing on."""

    def __init__(self, path: Path, port: int) -> None:
        self.target = f"unix://{path}"
        self._path = path
        self._port = port
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._passes = threading.Event()
        self._passes.set()

    def up(self) -> None:
        """Accept connections, and pass on what they bring."""
        self._passes.set()
        if self._listener is None:
            self._path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self._path))
            self._listener.listen(16)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def silence(self) -> None:
        """Let connections stand and pass nothing on, as a link does whose other end lost its power."""
        self._passes.clear()

    def down(self) -> None:
        """End every connection, and accept none."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for end in tuple(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._passes.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return  # `down`
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        """Pass on both directions of one connection until one ends."""
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as far:
            far.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )  # as a proxy does: else pieces wait 40 ms for each other
            self._open |= {near, far}
            back = threading.Thread(target=self._pass_on, args=(far, near), daemon=True)
            back.start()
            self._pass_on(near, far)
            back.join()
            self._open -= {near, far}

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                self._passes.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.down()


if __name__ == "__main__":
    with Relay(Path(sys.argv[1]), int(sys.argv[2])):
        print("listens", flush=True)
        sys.stdin.read()
