"""What systemd's manager is to a service: a datagram socket that hears how it does."""

from __future__ import annotations

import queue
import secrets
import socket
import threading
import time
from pathlib import Path

_LIMIT_S = 60.0


class NotifySocket:
    """Reads at once, as the manager does; `receive` hands out what came."""

    def __init__(self, path: Path | None = None) -> None:
        """At `path`, or under an abstract name."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = f"shmserve-test-{secrets.token_hex(8)}"
        self._socket.bind(str(path) if path is not None else f"\0{name}")
        #: For NOTIFY_SOCKET.
        self.address = str(path) if path is not None else f"@{name}"
        #: What was handed out, in its order.
        self.fields: list[tuple[str, str]] = []
        self._messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while message := self._socket.recv(65536):
            self._messages.put(message)

    def receive(self, limit_s: float = _LIMIT_S) -> dict[str, str]:
        """The next message; AssertionError if none comes."""
        try:
            lines = self._messages.get(timeout=limit_s).decode().splitlines()
        except queue.Empty:
            raise AssertionError(f"no message within {limit_s:g} s; before: {self.fields[-20:]}") from None
        message = dict(line.split("=", 1) for line in lines)
        self.fields += message.items()
        return message

    def wait_for(self, key: str, value: str | None = None) -> dict[str, str]:
        """The next message with this field."""
        until = time.monotonic() + _LIMIT_S
        while time.monotonic() < until:
            message = self.receive()
            if key in message and value in (None, message[key]):
                return message
        raise AssertionError(f"{key} never came: {self.fields[-20:]}")

    def forget(self) -> None:
        """Throw away what has come."""
        while not self._messages.empty():
            self._messages.get()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RD)
        self._reader.join()
        self._socket.close()
