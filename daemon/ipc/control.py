"""Control socket between a supervisor and an engine."""

from __future__ import annotations

import signal
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shmserve.varlink_socket import receive_with_fds

from .messages import FROM_SUPERVISOR, EngineMessage, InvalidMessage, decode, encode

MESSAGE_LIMIT = 1 << 20
#: Ends an engine's sleep, so that it looks for messages; harmless at any other time.
WAKE_SIGNAL = signal.SIGUSR1
#: Descriptors that one read may bring; each message has four at most.
FDS_LIMIT = 64


@dataclass(frozen=True)
class Arrival:
    """A message, and the descriptors that came with it, now the receiver's; none if the process had no room for all."""

    message: Any
    fds: list[int]


class ControlSocket:
    """The engine's end: blocking to send, never blocking to receive."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._received = bytearray()
        self._descriptors: deque[list[int]] = deque()  # of each message that has some
        #: The supervisor is gone.
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: EngineMessage) -> None:
        """Send to the supervisor; a supervisor that is gone is noticed by `receive`."""
        try:
            self._socket.sendall(encode(message))
        except OSError:
            self.closed = True

    def receive(self, timeout_s: float = 0.0) -> list[Arrival]:
        """The messages that have arrived; waits up to `timeout_s` for the first. Raises InvalidMessage."""
        self._socket.settimeout(timeout_s)
        try:
            while True:
                data, descriptors, of_more = receive_with_fds(self._socket, 65536, FDS_LIMIT)
                if descriptors or of_more is not None:
                    self._descriptors.append(descriptors)
                if not data:
                    self.closed = True
                    break
                self._received += data
                self._socket.settimeout(0)
        except (BlockingIOError, TimeoutError, InterruptedError):
            pass
        except ConnectionError:
            self.closed = True
        finally:
            self._socket.settimeout(None)
        # The kernel gives the descriptors of one message with a separate read, in the order of the messages and
        # with the beginning of theirs.
        return [
            Arrival(message, self._descriptors.popleft() if fds and self._descriptors else [])
            for message, fds in take_messages(self._received, FROM_SUPERVISOR)
        ]


def take_messages(received: bytearray, kinds: Mapping[str, Any]) -> list[tuple[Any, int]]:
    """Remove and return the complete messages at the start of `received`, each with its number of descriptors.

    `kinds` is as `decode` takes it. Raises InvalidMessage.
    """
    messages: list[tuple[Any, int]] = []
    while (end := received.find(b"\0")) >= 0:
        messages.append(decode(received[:end], kinds))
        del received[: end + 1]
    if len(received) > MESSAGE_LIMIT:
        raise InvalidMessage(f"a message of more than {MESSAGE_LIMIT} bytes")
    return messages
