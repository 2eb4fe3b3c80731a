"""Ring ends of a channel: which end writes which word, and in which order.

Each direction has one writing and one reading end. The client publishes requests and reads replies,
the engine takes requests and completes replies. A sequence names its slot (layout.py) and is never
used twice. A reader uses no unchecked value: it copies a slot's head once, compares the
sequence in it with the one it expects, and uses only the copy.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import NamedTuple

from .backend import NATIVE, core
from .codec import SlotMemory
from .counter_poller import CounterPoller
from .fence import IN_ORDER, fence
from .layout import COUNTER_OFFSET, REPLY, REQUEST, SLOTS_OFFSET, WORD, number_of, slot_of
from .segment import Segment


class RequestHead(NamedTuple):
    """A private copy of one request's header; the times are CLOCK_MONOTONIC nanoseconds, 0 for none."""

    sequence: int
    kind: int
    flags: int
    deadline_ns: int
    capture_ns: int
    max_age_ns: int
    submitted_ns: int
    schema: int
    metadata_bytes: int
    payload_bytes: int
    cancelled: int
    #: The id of the announced write that filled the payload; 0: it was not announced.
    write_id: int = 0


class ReplyHead(NamedTuple):
    """A private copy of one reply's header; durations in nanoseconds."""

    sequence: int
    status: int
    flags: int
    schema: int
    metadata_bytes: int
    payload_bytes: int
    version: int
    queued_ns: int
    staged_ns: int
    infer_ns: int
    copied_ns: int
    taken: int
    attempts: int


# Not `_make`, which is a Python function: one of these is made for each request and each reply.
_new = tuple.__new__
_unpack_request, _unpack_reply = REQUEST.packed.unpack_from, REPLY.packed.unpack_from
_pack_request = REQUEST.packed.pack_into


class _Ring:
    """One direction: the mapped segment and the memory of its slots."""

    def __init__(self, segment: Segment) -> None:
        geometry = segment.geometry
        self.segment = segment
        self.slots = geometry.slots
        self.words = segment.words
        self._memory = segment.memory
        #: Index of the counter in `words`, for polling without a call.
        self.counter = segment.counter_index
        #: The counter for a reader that waits for it to move.
        self.poller = CounterPoller(segment.bytes, self.counter)
        self.pollers = [self.poller]
        #: The native counterpart of the methods here; None in pure Python.
        self.native = (
            core.Slots(
                segment.bytes,
                COUNTER_OFFSET // WORD,
                SLOTS_OFFSET // WORD,
                geometry.stride // WORD,
                geometry.slots,
            )
            if NATIVE
            else None
        )
        self._heads = [geometry.slot_offset(slot) for slot in range(geometry.slots)]
        self._head_words = [offset // WORD for offset in self._heads]
        self.memories = []
        for slot in range(geometry.slots):
            metadata, payload = geometry.metadata_offset(slot), geometry.payload_offset(slot)
            self.memories.append(
                SlotMemory(
                    segment.bytes[metadata : metadata + geometry.metadata_bytes],
                    segment.bytes[payload : payload + geometry.payload_bytes],
                )
            )

    def memory(self, sequence: int) -> SlotMemory:
        """Return the slot that `sequence` names; the caller has checked that this segment has it."""
        return self.memories[slot_of(sequence)]

    def close(self) -> None:
        """Unmap, unless arrays still view the memory."""
        self.memories = []
        self.words = self._memory = memoryview(b"")
        self.poller.close()
        if self.native is not None:
            self.native.close()
        self.segment.close()


#: Slots rotate while they are no larger than this together.
_ROTATING_BYTES = 4 << 20


class RequestWriter(_Ring):
    """The client's end of the requests."""

    _cancelled = REQUEST.offset("cancelled") // WORD

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment)
        # The slot that the engine has just read lies in its CPU's cache: to write there again at once is slower
        # than in a slot that has left it since (bench/scale/slots_in_turn.py has the ratio of whole requests).
        # Slots that are large together push each other out of the cache that both share, which costs more.
        #: Number of slots that requests rotate through.
        self.rotating_slots = max(1, min(self.slots, _ROTATING_BYTES // max(1, segment.geometry.payload_bytes)))
        if self.native is not None:
            self.publish = self.native.publish  # type: ignore[method-assign]
            for slot, memory in enumerate(self.memories):
                memory.progress_words, memory.slot = self.native, slot

    def published(self) -> int:
        """Return the last sequence published: this word itself, so that an interrupted publication leaves no gap."""
        return self.words[self.counter]

    def publish(self, head: tuple[int, ...]) -> None:
        """Make the request whose payload and metadata are in place visible to the engine."""
        sequence = head[0]
        _pack_request(self._memory, self._heads[slot_of(sequence)], *head)
        # ORDER: payload and head before the counter; pairs with RequestReader.head.
        if not IN_ORDER:
            fence()
        self.words[self.counter] = sequence

    def cancel(self, sequence: int) -> None:
        """Ask the engine not to start this request; the engine may have started it already."""
        self.words[self._head_words[slot_of(sequence)] + self._cancelled] = sequence

    def keep(self, sequence: int) -> None:
        """Take `cancel` back: the engine has started this request."""
        self.words[self._head_words[slot_of(sequence)] + self._cancelled] = 0


class RequestReader(_Ring):
    """The engine's end of the requests."""

    _cancelled = REQUEST.offset("cancelled") // WORD

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment)
        self.copier: core.CutThroughCopier | None = None
        if self.native is not None:
            self.head = partial(self.native.request, RequestHead)  # type: ignore[method-assign]
            #: Copies payloads while the client still writes them.
            self.copier = _copier(segment)
            self.cancelled = self.native.cancelled  # type: ignore[method-assign]

    def close(self) -> None:
        if self.copier is not None:
            self.copier.close()
        super().close()

    def published(self) -> int:
        """Return the client's counter: a claim, to be checked against the sequence that is due."""
        return self.words[self.counter]

    def between(self, seen: int, published: int) -> list[int]:
        """Return the sequences in the slots that are later than `seen` and no later than `published`, in their order.

        All of them, if the client keeps to the protocol: a slot is used again only when its request is answered.
        """
        if not IN_ORDER:
            fence()
        words, first, last = self.words, number_of(seen), number_of(published)
        claims = [words[head] for head in self._head_words]
        return sorted(
            claim for slot, claim in enumerate(claims) if slot_of(claim) == slot and first < number_of(claim) <= last
        )

    def head(self, sequence: int) -> RequestHead | None:
        """Return a copy of the head of `sequence`; None if the slot does not exist or holds another request."""
        if slot_of(sequence) >= self.slots:
            return None
        # ORDER: the counter before head and payload; pairs with RequestWriter.publish.
        if not IN_ORDER:
            fence()
        head = _new(RequestHead, _unpack_request(self._memory, self._heads[slot_of(sequence)]))
        return head if head[0] == sequence else None

    def cancelled(self, sequence: int) -> bool:
        """Whether the client has withdrawn this request."""
        return self.words[self._head_words[slot_of(sequence)] + self._cancelled] == sequence


def _copier(segment: Segment) -> core.CutThroughCopier:
    geometry = segment.geometry
    places = COUNTER_OFFSET, geometry.payload_offset(0), geometry.stride
    return core.CutThroughCopier(segment.bytes, *places, geometry.slots, geometry.payload_bytes)


class ReplyWriter(_Ring):
    """The engine's end of the replies."""

    _taken = REPLY.offset("taken") // WORD
    _attempts = REPLY.offset("attempts") // WORD
    #: The words of a reply's head that are written before its sequence, which is the first word.
    _before_sequence = struct.Struct("@" + "Q" * (_taken - 1))

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment)
        if self.native is not None:
            self.take = self.native.take  # type: ignore[method-assign]
            self.complete = self.native.complete  # type: ignore[method-assign]

    def answered(self, sequence: int) -> bool:
        """Whether this or an earlier engine has answered `sequence`, or a later one in its slot."""
        return self.words[self._head_words[slot_of(sequence)]] >= sequence

    def head(self, sequence: int) -> ReplyHead:
        """Return the last head written in the slot of `sequence`."""
        return ReplyHead._make(REPLY.packed.unpack_from(self._memory, self._heads[slot_of(sequence)]))

    def attempts(self, sequence: int) -> int:
        """Return how often an engine has begun to run `sequence`."""
        head = self._head_words[slot_of(sequence)]
        return self.words[head + self._attempts] if self.words[head + self._taken] == sequence else 0

    def take(self, sequence: int) -> int:
        """Note that the model is about to run `sequence`, so that the next engine knows if this one dies."""
        words = self.words
        head = self._head_words[slot_of(sequence)]
        attempts = words[head + self._attempts] + 1 if words[head + self._taken] == sequence else 1
        words[head + self._attempts] = attempts
        words[head + self._taken] = sequence
        return attempts

    def complete(self, sequence: int, *head: int) -> None:
        """Make the reply whose payload and metadata are in place visible to the client.

        `head` has the fields of `ReplyHead` from `status` to `copied_ns`.
        """
        slot = slot_of(sequence)
        # The slot still names an earlier sequence until all else is written.
        self._before_sequence.pack_into(self._memory, self._heads[slot] + WORD, *head)
        # ORDER: payload and head before the sequence; pairs with ReplyReader.try_head.
        if not IN_ORDER:
            fence()
        words = self.words
        words[self._head_words[slot]] = sequence
        # ORDER: the sequence before the counter, which a spinning client polls; pairs with counter_poller.py.
        # One that sees the counter alone has used up its token, and waits for the next.
        if not IN_ORDER:
            fence()
        words[self.counter] += 1  # only the serving engine writes it


class ReplyReader(_Ring):
    """The client's end of the replies."""

    _taken = REPLY.offset("taken") // WORD

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment)
        if self.native is not None:
            self.try_head = partial(self.native.reply, ReplyHead)  # type: ignore[method-assign]

    def answered(self, sequence: int) -> bool:
        """Whether the reply to `sequence` is published; costs 0.1 us."""
        return self.words[self._head_words[slot_of(sequence)]] == sequence

    def taken(self, sequence: int) -> bool:
        """Whether an engine has begun to run `sequence`; it may have answered it since, or have died."""
        return self.words[self._head_words[slot_of(sequence)] + self._taken] == sequence

    def try_head(self, sequence: int) -> ReplyHead | None:
        """Return a copy of the head of the reply to `sequence`; None while it is not published."""
        slot = slot_of(sequence)
        if self.words[self._head_words[slot]] != sequence:
            return None
        # ORDER: the sequence before head and payload; pairs with ReplyWriter.complete.
        if not IN_ORDER:
            fence()
        return _new(ReplyHead, _unpack_reply(self._memory, self._heads[slot]))
