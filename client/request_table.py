"""Requests of one client that are in flight, the slots that they and loans occupy, and the decoding of their replies.

A data structure: it waits for nothing, and does not know the daemon. The caller holds the client's lock.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from shmserve.channel import ClientChannel
from shmserve.codec import Decoder, LeafReader, SlotMemory
from shmserve.errors import InferenceFailed, OutOfMemory, ProtocolMismatch, ShmServeError, SlotsExhausted
from shmserve.layout import SLOT_BITS, SLOT_MASK, number_of, sequence_of, slot_of
from shmserve.metadata import MetadataError
from shmserve.protocol import Flag, Status
from shmserve.ring import ReplyHead

from .capacity import SlotCapacity
from .error_mapping import READ_ERRORS, reply_error
from .loans import ReplyLoan, RequestLoan
from .model_unchecked import ModelUnchecked
from .pending import Pending
from .request_options import BACK_PRESSURED, RESIZE_REQUIRED

#: Plain numbers: looking a member up for each request costs 0.1 us, and comparing with one as much again.
_OK, _RESIZE_REQUIRED, _PICKLED = int(Status.OK), int(Status.RESIZE_REQUIRED), int(Flag.PICKLED)

Decode = Callable[[str, Decoder, SlotMemory, Pending, ReplyHead], tuple[Any, ShmServeError | None]]


def decode_reply(
    service: str, decoder: Decoder, memory: SlotMemory, pending: Pending, head: ReplyHead
) -> tuple[Any, ShmServeError | None]:
    """Return the result and the error of a reply of any status but RESIZE_REQUIRED."""
    in_slot = head.schema, head.metadata_bytes, head.payload_bytes, head.flags & _PICKLED != 0
    read_leaf: LeafReader | None = None
    loan: ReplyLoan | None = None
    if pending._loan_thread and head.status == _OK:
        loan = ReplyLoan(pending._owner, head.sequence, memory, pending._loan_thread)
        if not in_slot[-1]:
            read_leaf = loan.read_leaf
    try:
        tree = decoder.decode(memory, *in_slot, read_leaf)
    except MetadataError as error:
        return None, _unreadable(service, head, str(error))
    except MemoryError as error:
        number = number_of(head.sequence)
        return None, OutOfMemory(
            f"this process has no memory for the result of request {number} to {service!r}: {error}",
            service=service,
            request_id=number,
        )
    except Exception as error:  # unpickling runs the code of the object's own type
        if not in_slot[-1]:
            if not isinstance(error, READ_ERRORS):
                raise  # a signal handler's: the reply stays where it is
            return None, _unreadable(service, head, repr(error))
        why = f"{type(error).__name__}: {error}"
        return None, InferenceFailed(
            f"the model returned an object that this process cannot unpickle: {why}",
            service=service,
            request_id=number_of(head.sequence),
        )
    if head.status != _OK:
        return None, reply_error(service, head, tree)
    if loan is None:
        return tree, None
    # The caller's variable outlives the block, and only a dict or a list can be emptied under it.
    lends = read_leaf is not None and isinstance(tree, (dict, list))
    loan.hold(tree if lends else decoder.decode(memory, *in_slot), in_slot=lends)
    return loan, None


def _unreadable(service: str, head: ReplyHead, why: str) -> ProtocolMismatch:
    """Return the error for a reply that cannot be read, with all fields of its head, which show the cause."""
    number, slot = number_of(head.sequence), slot_of(head.sequence)
    return ProtocolMismatch(
        f"the reply of {service!r} cannot be read: {why} (request {number} in slot {slot}: status {head.status}, flags "
        f"{head.flags:#x}, structure {head.schema:#x} of {head.metadata_bytes} bytes)",
        service=service,
    )


class ChannelHolder(Protocol):
    """The connection, as the table sees it; its channel is replaced when it is resized."""

    channel: ClientChannel
    decoder: Decoder


class RequestTable:
    """Sequence -> Pending on the current connection. Completes every Pending of its client."""

    _holder: ChannelHolder

    def __init__(self, service: str, capacity: SlotCapacity, decode: Decode = decode_reply) -> None:
        self._service = service
        self._capacity = capacity
        self._decode = decode
        #: Requests without a reply by sequence; None for one that was abandoned.
        self.in_flight: dict[int, Pending | None] = {}
        #: Sequences answered RESIZE_REQUIRED: delivered once the channel has been resized.
        self.deferred: list[int] = []
        #: Replies that callers read in their slots, by sequence.
        self.replies_on_loan: dict[int, weakref.ref[ReplyLoan]] = {}
        #: The request slot that a caller fills in.
        self.request_loan: weakref.ref[RequestLoan] | None = None
        #: The engine's count of replies at the last poll: while it stands, there are no more.
        self.polled_count = 0
        #: Model versions whose results callers may get; None: those of any. Others become ModelUnchecked.
        self.accepted: set[int] | None = None
        #: The head of the latest reply.
        self.last: ReplyHead | None = None
        #: Replies that arrived after their request was abandoned.
        self.late_replies = 0
        self._last_before: ReplyHead | None = None  # the latest reply when this client attached,
        self._declared_stateful: bool | None = None  # and whether the model kept state, by its description

    @property
    def slots(self) -> int:
        """The number of slots that the client asked for."""
        return self._capacity.slots

    # The channel

    def begin(self, holder: ChannelHolder, stateful: bool | None) -> None:
        """Start on a new connection; every earlier request has been completed."""
        self._holder = holder
        self.in_flight, self.deferred, self.replies_on_loan = {}, [], {}
        self.polled_count = 0
        if self.accepted is not None:
            self.accepted.clear()  # by their name they may be other models at another daemon
        self._last_before, self._declared_stateful = self.last, stateful

    def switch(self, deferred: list[int]) -> None:
        """Continue in the next generation of the channel, which delivers `deferred`.

        Abandoned requests stay in the old generation, where they will not be answered.
        """
        self.in_flight = {sequence: self.in_flight[sequence] for sequence in deferred}
        self.deferred = []
        self.polled_count = 0

    # Slots

    def claim(self, pending: Pending | None) -> int:
        """Return the sequence of the next request, whose slot is free, or BACK_PRESSURED or RESIZE_REQUIRED.

        `pending` is in flight from now on, before its request is published: an interrupt between the two must not lose a
        reply. Raises SlotsExhausted if only the calling thread can free a slot.
        """
        if self.request_loan is not None and (loan := self.request_loan()) is not None:
            if loan.thread == threading.get_ident():
                raise SlotsExhausted(
                    "a request slot is lent out: send() it, or leave its block, before the next request",
                    service=self._service,
                    slots=self.slots,
                )
            return BACK_PRESSURED
        sequence = (0 if self.deferred else self._next_sequence()) or self._poll_then_claim()
        if pending is not None and sequence > 0:
            pending.sequence = sequence
            self.in_flight[sequence] = pending
        return sequence

    def claim_loan(self, pending: Pending, loan: RequestLoan) -> int:
        """Return the sequence of the slot on loan; `pending` is in flight from now on."""
        pending.sequence = loan.sequence
        self.in_flight[loan.sequence] = pending
        return loan.sequence

    def retract(self, pending: Pending) -> None:
        """Forget a request that was not published after all."""
        self.in_flight.pop(pending.sequence, None)
        pending.sequence = 0

    def _next_sequence(self) -> int:
        """Return the next sequence, in the slot whose turn it is or else another one; 0 while none is free."""
        requests = self._holder.channel.requests
        published = requests.words[requests.counter]
        number = (published >> SLOT_BITS) + 1
        turn = number % requests.rotating_slots
        if not self.in_flight and not self.replies_on_loan:
            return (number << SLOT_BITS) | turn
        self._forget_unpublished(published)
        used = {sequence & SLOT_MASK for sequence in self.in_flight}
        used.update(
            slot_of(sequence) for sequence in tuple(self.replies_on_loan) if self._loan_of(sequence) is not None
        )
        for slot in (*range(turn, requests.slots), *range(turn)):
            if slot not in used:
                return sequence_of(number, slot)
        return 0

    def _poll_then_claim(self) -> int:
        self.poll()
        if self.deferred:
            return RESIZE_REQUIRED
        sequence = self._next_sequence()
        if sequence:
            return sequence
        if not self.in_flight and self.lends_reply_to(threading.get_ident()):
            raise SlotsExhausted(
                f"every slot of {self._service!r} holds a reply that is lent out: leave its block first, or make the "
                "client with more slots",
                service=self._service,
                slots=self.slots,
            )
        return BACK_PRESSURED

    def _forget_unpublished(self, published: int) -> None:
        """Drop requests that an interrupt kept from being published: no reply will ever come."""
        for sequence in tuple(self.in_flight):
            if number_of(sequence) > number_of(published):
                del self.in_flight[sequence]

    def is_latest_unpublished(self) -> bool:
        """Return whether the request that claimed its slot last was not published; there must be one in flight."""
        latest: int = next(reversed(self.in_flight))
        return number_of(latest) > number_of(self._holder.channel.requests.published())

    def _loan_of(self, sequence: int) -> ReplyLoan | None:
        reference = self.replies_on_loan.get(sequence)
        loan = reference() if reference is not None else None
        if loan is None:
            self.replies_on_loan.pop(sequence, None)
        return loan

    def lends_reply_to(self, thread: int) -> bool:
        """Return whether `thread` reads a reply in its slot."""
        loans = (self._loan_of(sequence) for sequence in tuple(self.replies_on_loan))
        return any(loan.thread == thread for loan in loans if loan is not None)

    def is_busy(self) -> bool:
        """Return whether requests or loans live in this generation of the channel, so that it cannot be resized."""
        self._forget_unpublished(self._holder.channel.requests.published())
        return any(self._loan_of(sequence) is not None for sequence in tuple(self.replies_on_loan)) or any(
            pending is not None and not pending._completed_ns and sequence not in self.deferred
            for sequence, pending in self.in_flight.items()
        )

    def is_awaited(self) -> bool:
        """Return whether a reply can free a slot."""
        lent = self.request_loan is not None and self.request_loan() is not None
        return not lent and len(self.in_flight) > len(self.deferred)

    # Loans

    def lend(self, loan: RequestLoan) -> None:
        """Note the request slot that a caller fills in."""
        self.request_loan = weakref.ref(loan)

    def is_lent(self, loan: RequestLoan) -> bool:
        """Return whether `loan` has not ended."""
        return self.request_loan is not None and self.request_loan() is loan

    def release_loan(self, loan: RequestLoan) -> None:
        """Let the slot of `loan` be used again."""
        if self.is_lent(loan):
            self.request_loan = None

    def release_reply(self, sequence: int) -> None:
        """Let the slot of a reply on loan be used again."""
        self.replies_on_loan.pop(sequence, None)

    # Replies

    def poll(self) -> bool:
        """Complete every request whose reply has arrived; return whether there was any."""
        found = False
        replies = self._holder.channel.replies
        # ORDER: the counter before the sequences, so that a reply which is counted is found, or it is missed later; pairs
        # with ring_complete.
        self.polled_count = replies.poller.load()
        for sequence in tuple(self.in_flight):
            head = replies.try_head(sequence)
            if head is None or sequence in self.deferred:
                continue
            found = True
            if head.status == _RESIZE_REQUIRED:
                self._capacity.grow_replies(head.metadata_bytes, head.payload_bytes)
                self.deferred.append(sequence)
                continue
            pending = self.in_flight[sequence]
            if pending is None:
                self.late_replies += 1
            elif not pending._completed_ns:
                memory = replies.memories[sequence & SLOT_MASK]
                result, error = self._decode(self._service, self._holder.decoder, memory, pending, head)
                if type(result) is ReplyLoan and result.in_slot:
                    self.replies_on_loan[sequence] = weakref.ref(result)
                if error is None and self.accepted is not None and head.version not in self.accepted:
                    result, error = None, ModelUnchecked(result, head.version)
                now_ns = time.monotonic_ns()
                if not pending._completed_ns:  # or the client was closed, while the reply was decoded
                    pending._result, pending._error, pending._head = result, error, head
                    pending._completed_ns = now_ns
                self.last = head
            del self.in_flight[sequence]  # last: an interrupt before it must not lose the reply
        return found

    def complete(self, pending: Pending, reply: tuple[Any, ReplyHead, int]) -> None:
        """Complete a request in flight with a reply that was decoded: its result, its head and the time."""
        if self.accepted is not None and (version := reply[1].version) not in self.accepted:
            pending._error, reply = ModelUnchecked(reply[0], version), (None, reply[1], reply[2])
        pending._result, pending._head, pending._completed_ns = reply
        self.last = pending._head
        del self.in_flight[pending.sequence]  # last, as in `poll`

    def fail(self, pending: Pending, error: ShmServeError) -> None:
        """Complete a request with an error, unless it is completed already; its slot stays in use."""
        now_ns = time.monotonic_ns()
        if not pending._completed_ns:
            pending._error = error
            pending._completed_ns = now_ns

    def settle(self, pending: Pending, unchecked: ModelUnchecked, refusal: ShmServeError | None) -> None:
        """Give a request the result that was withheld, or the refusal; once only."""
        if pending._error is unchecked:
            pending._result = None if refusal is not None else unchecked.result
            pending._error = refusal

    def fail_all(self, error: Callable[[], ShmServeError]) -> None:
        """Complete every request in flight with a new error."""
        for pending in tuple(self.in_flight.values()):
            if pending is not None and not pending._completed_ns:
                self.fail(pending, error())

    def fail_deferred(self, error: Callable[[int], ShmServeError]) -> None:
        """Complete the requests whose replies need larger slots, which are refused; `error` gets their numbers."""
        for sequence in self.deferred:
            pending = self.in_flight.pop(sequence)
            if pending is not None:
                self.fail(pending, error(number_of(sequence)))
        self.deferred = []

    def clear(self) -> None:
        """Forget every request: the channel is lost."""
        self.in_flight.clear()
        self.deferred = []

    def abandon(self, pending: Pending) -> bool:
        """Discard the reply once it arrives, which also frees the slot; return whether the request was in flight."""
        if pending._loan_thread:
            self.replies_on_loan.pop(pending.sequence, None)
        if self.in_flight.get(pending.sequence) is not pending:
            return False
        self.in_flight[pending.sequence] = None
        return True

    def is_stateful(self) -> bool | None:
        """Return whether the model keeps state, by its latest reply or else its description; None if unknown."""
        if self.last is not None and self.last is not self._last_before:
            return bool(self.last.flags & Flag.STATEFUL)
        return self._declared_stateful
