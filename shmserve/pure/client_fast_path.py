"""Client half of the fast path in Python; native/python/client_fast_path.c says which requests are eligible."""

from __future__ import annotations

import time
from typing import Any, TypeVar

from shmserve.layout import REPLY, SLOT_BITS, SLOT_MASK, number_of, sequence_of, slot_of
from shmserve.protocol import Flag, Kind, Status

from .counter_poller import CounterPoller, spin_unless_blocked
from .semaphore import Listener, Semaphore
from .slots import Slots
from .tree_decoder import TreeDecoder
from .tree_encoder import TreeEncoder

_Head = TypeVar("_Head", bound=tuple[int, ...])

_INFER, _OK, _PICKLED = int(Kind.INFER), int(Status.OK), int(Flag.PICKLED)
_STATUS, _FLAGS = REPLY.names.index("status"), REPLY.names.index("flags")
_SCHEMA, _PAYLOAD_BYTES = REPLY.names.index("schema"), REPLY.names.index("payload_bytes")


class ClientFastPath:
    """Sends and receives requests of structures that are known."""

    __slots__ = (
        *("_decoders", "_encoder", "_poller", "_replies", "_reply_memories", "_request_memories", "_requests"),
        *("_pollers", "_reply_bell", "_request_bell", "_rotating_slots", "polled_ns", "sequence", "waited_ns"),
    )

    def __init__(
        self,
        requests: Slots,
        request_memories: list[Any],
        rotating_slots: int,
        replies: Slots,
        reply_memories: list[Any],
        poller: CounterPoller,
        encoder: TreeEncoder,
        decoders: dict[int, TreeDecoder],
        request_bell: Semaphore | None,
        reply_bell: Listener,
        /,
    ) -> None:
        self._requests = requests
        self._request_memories = request_memories
        self._rotating_slots = rotating_slots
        self._replies = replies
        self._reply_memories = reply_memories
        self._poller = poller
        self._encoder = encoder
        self._decoders = decoders
        #: The last request sent; 0: none.
        self.sequence = 0
        #: How long the last wait was: negative if it ended while it spun, 0 if it ended without news.
        self.waited_ns = 0
        #: How long it polled after its first sleep: negative if in vain, 0 if it did not.
        self.polled_ns = 0
        self._pollers = [poller]
        self._request_bell = request_bell
        self._reply_bell = reply_bell

    def _next_sequence(self, in_flight: dict[int, Any]) -> int:
        """Return the next sequence: the next slot in turn that no request in flight uses; 0 if all are in use."""
        number, slots = number_of(self._requests._count()) + 1, self._requests._slots
        self._replies._count()  # raises once the channel is closed
        turn = number % self._rotating_slots
        if not in_flight:
            return number << SLOT_BITS | turn
        used = {sequence & SLOT_MASK for sequence in in_flight}
        free = (slot for slot in (*range(turn, slots), *range(turn)) if slot not in used)
        return next((sequence_of(number, slot) for slot in free), 0)

    def try_send(
        self,
        tree: Any,
        pending: Any,
        in_flight: dict[int, Any],
        leads: bool,
        kind: int,
        flags: int,
        deadline_ns: int,
        capture_ns: int,
        max_age_ns: int,
        /,
    ) -> bool | None:
        """Write a tree, which a reset does not have, publish it and ring; False if it is not eligible, and nothing was done.

        None if its structure is new, or has other sizes than declared.
        """
        sequence = self._next_sequence(in_flight)
        if not sequence:
            return False
        encoded: Any = (0, 0, 0, 0)
        if kind == _INFER:
            slot = slot_of(sequence)
            encoded = self._encoder._put(tree, self._request_memories[slot])
            if type(encoded) is bytes:
                return None
            if type(encoded) is not tuple or len(encoded) != 4:
                return False
            # Code that ran for the tree, or another thread, may have published a request.
            if self._next_sequence(in_flight) != sequence:
                return False
        # Before publication: a thread that sees the reply must find its pending request.
        pending.sequence = sequence
        in_flight[sequence] = pending
        self.sequence = sequence
        if leads:
            self._poller.last_seen = self._replies._count()
        schema, metadata_bytes, payload_bytes, write_id = encoded
        options = kind, flags, deadline_ns, capture_ns, max_age_ns
        sizes = schema, metadata_bytes, payload_bytes
        self._requests.publish((sequence, *options, time.monotonic_ns(), *sizes, 0, write_id))
        if self._request_bell is not None:
            self._request_bell.ring()
        return True

    def touch(self, in_flight: dict[int, Any], /) -> None:
        """Do nothing: in Python, reading the memory costs more than it saves."""

    def wait(
        self,
        sequence: int,
        drains: bool,
        spin_ns: int,
        sleep_ns: int,
        poll_ns: int,
        longest_ns: int,
        until_ns: int,
        kind: type[_Head],
        /,
    ) -> tuple[Any, _Head, int] | None:
        """Wait until the engine's count of replies moves, then receive the reply to `sequence`.

        Spin for `spin_ns`, then sleep at the doorbell; with `sleep_ns`, which counts from now, poll in between for `poll_ns`.
        """
        began_ns = time.monotonic_ns()
        self.waited_ns = self.polled_ns = 0
        if drains:
            self._reply_bell.try_take()
        spun_ns = spin_unless_blocked(self._pollers, min(began_ns + spin_ns, until_ns))
        if spun_ns:
            self.waited_ns = -spun_ns
            return self._receive(sequence, kind)
        wake_ns, end_ns = began_ns + sleep_ns, min(time.monotonic_ns() + longest_ns, until_ns)
        if sleep_ns and wake_ns < end_ns:
            woken = self._sleep(wake_ns)
            woke_ns = time.monotonic_ns()
            if not woken and woke_ns >= wake_ns:  # or else a signal has ended the sleep
                spun_ns = spin_unless_blocked(self._pollers, min(wake_ns + poll_ns, until_ns), True)
                polled_ns = max(1, time.monotonic_ns() - woke_ns)
                self.polled_ns = polled_ns if spun_ns else -polled_ns
                woken = not spun_ns and self._sleep(end_ns)
        else:
            woken = self._sleep(end_ns)
        if woken or spun_ns:
            waited_ns = time.monotonic_ns() - began_ns
            self.waited_ns = -waited_ns if spun_ns else waited_ns
        return self._receive(sequence, kind)

    def _sleep(self, until_ns: int) -> bool:
        return self._reply_bell.wait(max(0, until_ns - time.monotonic_ns()))

    def try_receive(self, kind: type[_Head], /) -> tuple[Any, _Head, int] | None:
        """Return the result of the last request sent, its head and the time; None while there is none, or for the slow path."""
        return self._receive(self.sequence, kind)

    def _receive(self, sequence: int, kind: type[_Head]) -> tuple[Any, _Head, int] | None:
        head = self._replies.reply(kind, sequence) if sequence else None
        if head is None or head[_STATUS] != _OK or head[_FLAGS] & _PICKLED:
            return None
        decoder = self._decoders.get(head[_SCHEMA])
        if decoder is None or not decoder.is_complete:
            return None
        try:
            tree = decoder.decode(self._reply_memories[slot_of(sequence)].payload, head[_PAYLOAD_BYTES])
        except ValueError:  # sizes or a text that cannot be read: the slow path reports them
            return None
        return tree, head, time.monotonic_ns()
