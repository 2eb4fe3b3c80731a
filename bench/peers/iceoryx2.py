"""iceoryx2's request/response: a loan of shared memory, and an event or polling as the notification.

iceoryx2 moves slices of bytes and has no codec for observations, so each slice holds what the socket peer would send:
a protocol-5 pickle and the arrays' bytes, here copied straight into the loan and read in place by the server. The
user also chooses the wait: `iceoryx2-event` sleeps on an event service at both ends, `iceoryx2-poll` polls.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .iceoryx2_node import Node, prefix
from .out_of_band import PREFIX, decode, encode, sizes_in, up
from .peer import Infer, Ready, ServedPeer, terminate_by_exception
from .policy import Policy

CLIENT_ID_BYTES = 16
POLL_FOR_S, POLL_EVERY_S = 0.01, 0.001  # After a request the poller spins this long, then it polls each millisecond.


def write(loan: Callable[[int], Any], client: bytes, value: Any) -> Any:
    """Loan a slice that fits, write the client's id and the value into it, and return the filled loan."""
    head, raw = encode(value)
    start = up(CLIENT_ID_BYTES + len(head))
    loaned = loan(start + sum(up(view.nbytes) for view in raw))
    memory = loaned.payload().as_memory_view().cast("B")
    memory[: CLIENT_ID_BYTES + len(head)] = client + head
    for view in raw:
        memory[start : start + view.nbytes] = view
        start += up(view.nbytes)
    return loaned.assume_init()


def read(received: Any, own: bool) -> tuple[bytes, Any]:
    """Return the client's id and the value; its arrays are the caller's, or are in the slice while `received` lives."""
    memory = received.payload().as_memory_view().cast("B").toreadonly()
    head = memory[CLIENT_ID_BYTES:]
    start = up(CLIENT_ID_BYTES + PREFIX.unpack_from(head)[0])
    buffers: list[Any] = []
    for size in sizes_in(head):
        view = memory[start : start + size]
        buffers.append(bytearray(view) if own else view)
        start += up(size)
    return bytes(memory[:CLIENT_ID_BYTES]), decode(head, buffers)


def serve_by(directory: Path, ready: Ready, events: bool) -> None:
    terminate_by_exception()
    node, policy = Node(str(directory)), Policy()
    server = node.growing(node.requests().server_builder())
    wait = node.waiting("asked") if events else lambda: time.sleep(POLL_EVERY_S)
    notifiers: dict[bytes, Any] = {}
    ready(str(directory))
    poll_until = 0.0
    while True:
        request = server.receive()
        if request is None:
            if time.monotonic() > poll_until:
                wait()
            continue
        client, observation = read(request, own=False)
        reply = policy.infer(observation)
        write(request.loan_slice_uninit, client, reply).send()
        del observation, request
        if events:
            if client not in notifiers:
                notifiers[client] = node.notifier(f"answered/{client.hex()}")
            notifiers[client].notify()
        else:
            poll_until = time.monotonic() + POLL_FOR_S


class Iceoryx2Event(ServedPeer):
    """Peer of which both ends sleep."""

    name = "iceoryx2-event"
    packages = ("iceoryx2",)
    events = True

    @staticmethod
    def serve(directory: Path, ready: Ready) -> None:
        serve_by(directory, ready, events=True)

    def connect(self) -> Infer:
        node, me = Node(self.address), uuid.uuid4().bytes
        client = node.growing(node.requests().client_builder())
        wait = node.waiting(f"answered/{me.hex()}") if self.events else lambda: None
        notify = node.notifier("asked").notify if self.events else lambda: None

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            pending = write(client.loan_slice_uninit, me, observation).send()
            notify()
            while (response := pending.receive()) is None:
                wait()
            reply: dict[str, Any] = read(response, own=True)[1]
            return reply

        return infer

    def stop(self) -> None:
        super().stop()
        if self.address:
            for left in Path("/dev/shm").glob(f"{prefix(self.address)}*"):
                left.unlink(missing_ok=True)


class Iceoryx2Poll(Iceoryx2Event):
    """Peer of which both ends poll, as in iceoryx2's own benchmarks."""

    name = "iceoryx2-poll"
    events = False

    @staticmethod
    def serve(directory: Path, ready: Ready) -> None:
        serve_by(directory, ready, events=False)
