"""What a supervisor and its engine say to each other, one NUL-terminated JSON object a message.

supervisor -> engine                          engine -> supervisor
load    package, version, device, settings    loading / warming
                                              ready     contract of the warmed-up model
                                              failed    stage, error, message
attach  channel_info, trusted, uid, carried, suspicion
suspect channel, left_s, blamed               (the client runs alone and behind the others that long)
detach  channel
lost    channel, generation, carried          (answers what no engine has)
record  channel, a record ring's descriptor
record_end
serve                                         serving
pause                                         paused    nothing of the engine's is under way
                                              broken    channel, generation, reason, blame, detail
                                              gpu       what status shows of the GPU, after a change
drain   (answers what was published)          draining  waiting
                                              drained   (and exits)
stop                                          (exits)
"""

from __future__ import annotations

import json
import signal
import socket
from collections import deque
from typing import Any

from shmserve.varlink_socket import receive_with_fds

MESSAGE_LIMIT = 1 << 20
#: Ends an engine's sleep, so that it looks for messages; harmless at any other time.
WAKE_SIGNAL = signal.SIGUSR1
#: Descriptors that one read may bring; each message has four at most.
FDS_LIMIT = 64


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

    def send(self, event: str, **fields: Any) -> None:
        """Tell the supervisor; a supervisor that is gone is noticed by `receive`."""
        try:
            self._socket.sendall(encode(event, **fields))
        except OSError:
            self.closed = True

    def receive(self, timeout_s: float = 0.0) -> list[dict[str, Any]]:
        """The messages that have arrived; waits up to `timeout_s` for the first.

        `fds` of a message is a list of the descriptors that came with it, now the caller's; none if this process had no
        room for all of them.
        """
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
        messages = take_messages(self._received)
        for message in messages:
            # The kernel gives those of one message with a read of their own, in the order of the messages and with the
            # beginning of theirs.
            message["fds"] = self._descriptors.popleft() if message.get("fds", 0) and self._descriptors else []
        return messages


def encode(event: str, **fields: Any) -> bytes:
    """One message: its event and its fields."""
    return json.dumps({"event": event, **fields}).encode() + b"\0"


def take_messages(received: bytearray) -> list[dict[str, Any]]:
    """Remove and return the complete messages at the start of `received`.

    Raises ValueError for what is none: an engine runs the model's code, which can write to any descriptor it has.
    """
    messages: list[dict[str, Any]] = []
    while (end := received.find(b"\0")) >= 0:
        try:
            message = json.loads(received[:end])
        except RecursionError:
            raise ValueError("a control message that is nested too deeply") from None
        if type(message) is not dict or type(message.get("event")) is not str:
            raise ValueError("a control message that names no event")
        messages.append(message)
        del received[: end + 1]
    if len(received) > MESSAGE_LIMIT:
        raise ValueError(f"a control message of more than {MESSAGE_LIMIT} bytes")
    return messages
