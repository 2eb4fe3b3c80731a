"""Ring ends of a channel: which end writes which word.

Each direction has one writing and one reading end. The client publishes requests and reads replies,
the engine takes requests and completes replies. A sequence names its slot (layout.py) and is never
used twice. A reader uses no unchecked value: it copies a slot's head once, compares the
sequence in it with the one it expects, and uses only the copy.

The steps of every request are methods of the backend's `Slots`, which keeps their order. An end has them as attributes:
another Python function around each would cost as much as the step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from .backend import CounterPoller, CutThroughCopier, Slots
from .codec import SlotMemory
from .fence import IN_ORDER, fence, full_fence
from .layout import ASLEEP, COUNTER_LINE, COUNTER_OFFSET, REPLY, REQUEST, SLOTS_OFFSET, WORD, number_of, slot_of
from .protocol import Status
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
        #: The heads of the slots, as the backend writes and reads them.
        self.heads = Slots(
            segment.bytes,
            COUNTER_OFFSET // WORD,
            SLOTS_OFFSET // WORD,
            geometry.stride // WORD,
            geometry.slots,
        )
        #: For `mark_asleep`, at the end that writes the counter.
        self.writers = [self.heads]
        self._head_words = [geometry.slot_offset(slot) // WORD for slot in range(geometry.slots)]
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
        self.heads.close()
        self.segment.close()


#: Words of the counter's line behind the counter.
_PROCESSOR, _EXPECTED, _PERIOD = (COUNTER_LINE.names.index(name) for name in ("processor", "expected_ns", "period_ns"))
#: Slots rotate while they are no larger than this together.
_ROTATING_BYTES = 4 << 20


class RequestWriter(_Ring):
    """The client's end of the requests."""

    _cancelled, _submitted = (REQUEST.offset(name) // WORD for name in ("cancelled", "submitted_ns"))

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment)
        # The slot that the engine has just read lies in its CPU's cache: to write there again at once is slower
        # than in a slot that has left it since (bench/scale/slots_in_turn.py has the ratio of whole requests).
        # Slots that are large together push each other out of the cache that both share, which costs more.
        #: Number of slots that requests rotate through.
        self.rotating_slots = max(1, min(self.slots, _ROTATING_BYTES // max(1, segment.geometry.payload_bytes)))
        #: Make the request with this head, whose payload and metadata are in place, visible to the engine.
        self.publish: Callable[[tuple[int, ...]], None] = self.heads.publish
        for slot, memory in enumerate(self.memories):
            memory.progress_words, memory.slot = self.heads, slot

    def published(self) -> int:
        """Return the last sequence published: this word itself, so that an interrupted publication leaves no gap."""
        return self.words[self.counter]

    def latest(self) -> RequestHead | None:
        """Return the head of the last request published; None if there is none."""
        return self.heads.request(RequestHead, self.published())

    def submitted_ns(self, sequence: int) -> int:
        """Return when the request with this sequence was published (CLOCK_MONOTONIC), while it is in flight."""
        return self.words[self._head_words[slot_of(sequence)] + self._submitted]

    def cancel(self, sequence: int) -> None:
        """Withdraw this request: an engine that has not taken it (`ReplyReader.taken`, after this call) never runs it."""
        self.words[self._head_words[slot_of(sequence)] + self._cancelled] = sequence
        # ORDER: the withdrawal before the caller's look at `taken`; pairs with Slots.take, which looks the other way round:
        # one of the two sees the other.
        full_fence()

    def say_period(self, period_ns: int) -> None:
        """Tell the engine the time between two requests; 0: it learns that."""
        self.words[self.counter + _PERIOD] = period_ns

    def say_expected(self, expected_ns: int) -> None:
        """Tell the engine when the next request comes (CLOCK_MONOTONIC)."""
        self.words[self.counter + _EXPECTED] = expected_ns

    def keep(self, sequence: int) -> None:
        """Take `cancel` back: an engine has taken this request."""
        self.words[self._head_words[slot_of(sequence)] + self._cancelled] = 0


class RequestReader(_Ring):
    """The engine's end of the requests."""

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment)
        geometry = segment.geometry
        places = COUNTER_OFFSET, geometry.payload_offset(0), geometry.stride, geometry.slots, geometry.payload_bytes
        #: Copies payloads while the client still writes them.
        self.copier = CutThroughCopier(segment.bytes, *places)
        #: Return a copy of the head of a sequence; None if the slot does not exist or holds another request.
        self.head: Callable[[int], RequestHead | None] = partial(self.heads.request, RequestHead)
        #: Whether the client has withdrawn the request with this sequence.
        self.cancelled: Callable[[int], bool] = self.heads.cancelled

    def close(self) -> None:
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


class ReplyWriter(_Ring):
    """The engine's end of the replies."""

    _taken = REPLY.offset("taken") // WORD
    _attempts = REPLY.offset("attempts") // WORD

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment)
        #: Note that the model is about to run a sequence, so that the next engine knows if this one dies; return how often
        #: an engine has begun to run it. The model may run it only if it is not withdrawn even now
        #: (`RequestReader.cancelled`, after this call).
        self.take: Callable[[int], int] = self.heads.take
        #: Make the reply to a sequence, whose payload and metadata are in place, visible to the client; behind the sequence
        #: are the fields of `ReplyHead` from `status` to `copied_ns`.
        self.complete: Callable[..., None] = self.heads.complete

    def answered(self, sequence: int) -> bool:
        """Whether this or an earlier engine has answered `sequence`, or a later one in its slot."""
        return self.words[self._head_words[slot_of(sequence)]] >= sequence

    def head(self, sequence: int) -> ReplyHead:
        """Return the last head written in the slot of `sequence`."""
        return ReplyHead._make(REPLY.packed.unpack_from(self._memory, self._head_words[slot_of(sequence)] * WORD))

    def latest_version(self) -> int:
        """Return the version of the model that made the latest result in these slots, by any engine; 0 if there is none."""
        heads = (self.head(slot) for slot in range(len(self.memories)))
        return max(((head.sequence, head.version) for head in heads if head.status == Status.OK), default=(0, 0))[1]

    def attempts(self, sequence: int) -> int:
        """Return how often an engine has begun to run `sequence`."""
        head = self._head_words[slot_of(sequence)]
        return self.words[head + self._attempts] if self.words[head + self._taken] == sequence else 0


class ReplyReader(_Ring):
    """The client's end of the replies."""

    _taken = REPLY.offset("taken") // WORD

    def __init__(self, segment: Segment) -> None:
        super().__init__(segment)
        #: Return a copy of the head of the reply to a sequence; None while it is not published.
        self.try_head: Callable[[int], ReplyHead | None] = partial(self.heads.reply, ReplyHead)

    def answered(self, sequence: int) -> bool:
        """Whether the reply to `sequence` is published; costs 0.1 us."""
        return self.words[self._head_words[slot_of(sequence)]] == sequence

    def is_writer_asleep(self) -> bool:
        """Return whether the engine has noted that it sleeps, and has not run since."""
        return self.words[self.counter + _PROCESSOR] & ASLEEP != 0

    def taken(self, sequence: int) -> bool:
        """Whether an engine has begun to run `sequence`; it may have answered it since, or have died."""
        return self.words[self._head_words[slot_of(sequence)] + self._taken] == sequence
