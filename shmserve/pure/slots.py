"""Heads of one segment's slots: the steps of the four ring ends (shmserve/ring.py) in Python.

Where the processor does not keep the order by itself, a fence stands where native/ has the memory orders of C11.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from shmserve.fence import IN_ORDER, fence, full_fence
from shmserve.layout import COUNTER_LINE, REPLY, REQUEST, SLOT_MASK, WORD

from .memory import Closed, words_of

_Head = TypeVar("_Head", bound=tuple[int, ...])

# Not `_make`, which is a Python function: one of these is made for each request and each reply.
_new = tuple.__new__
_unpack_request, _unpack_reply = REQUEST.packed.unpack_from, REPLY.packed.unpack_from
_pack_request = REQUEST.packed.pack_into
_CANCELLED = REQUEST.names.index("cancelled")
_TAKEN, _ATTEMPTS = REPLY.names.index("taken"), REPLY.names.index("attempts")
#: The words of a reply's head that are written before its sequence, which is the first word.
_pack_before_sequence = struct.Struct("@" + "Q" * (_TAKEN - 1)).pack_into
_MOST_SLOTS = 1 << 16
_closed: Any = Closed("this segment was")


class Slots:
    """The heads of one segment's slots."""

    def __init__(self, memory: npt.NDArray[np.uint8], counter: int, first: int, stride: int, slots: int, /) -> None:
        """Find the slots in `memory`; the places are in words of 8 bytes."""
        words = words_of(memory)
        if (
            counter < 0
            or counter + len(COUNTER_LINE.names) > len(words)
            or first < 0
            or not 1 <= slots <= _MOST_SLOTS
            or stride < len(REPLY.names)
            or stride > (len(words) - first) // slots
        ):
            raise ValueError("these slots are not in this memory")
        self._counter = counter
        self._words = words
        self._bytes = words.cast("B")
        self._slots = slots
        #: Index of each head in words; every method begins with it, which raises after `close`.
        self._heads = [first + slot * stride for slot in range(slots)]

    def publish(self, head: tuple[int, ...], /) -> None:
        """Make the request whose payload and metadata are in place visible to the engine."""
        sequence = head[0]
        _pack_request(self._bytes, self._heads[sequence & SLOT_MASK] * WORD, *head)
        # ORDER: payload and head before the counter; pairs with request.
        if not IN_ORDER:
            fence()
        self._words[self._counter] = sequence

    def request(self, kind: type[_Head], sequence: int, /) -> _Head | None:
        """Return a copy of the head of `sequence`; None if the slot does not exist or holds another request."""
        slot = sequence & SLOT_MASK
        if slot >= self._slots:
            return None
        at = self._heads[slot] * WORD
        # ORDER: the counter before head and payload; pairs with publish.
        if not IN_ORDER:
            fence()
        head = _new(kind, _unpack_request(self._bytes, at))
        return head if head[0] == sequence else None

    def cancelled(self, sequence: int, /) -> bool:
        """Whether the client has withdrawn this request."""
        return self._words[self._heads[sequence & SLOT_MASK] + _CANCELLED] == sequence

    def take(self, sequence: int, /) -> int:
        """Note that the model is about to run `sequence`; return how often an engine has begun to.

        The model may run it only if it is not withdrawn even now (`cancelled` of the requests, after this call).
        """
        head, words = self._heads[sequence & SLOT_MASK], self._words
        attempts = words[head + _ATTEMPTS] + 1 if words[head + _TAKEN] == sequence else 1
        words[head + _ATTEMPTS] = attempts
        words[head + _TAKEN] = sequence
        # ORDER: the mark before the caller's look at `cancelled`; pairs with RequestWriter.cancel.
        full_fence()
        return attempts

    def complete(self, sequence: int, /, *head: int) -> None:
        """Make the reply whose payload and metadata are in place visible to the client.

        `head` has the fields of a reply's head from `status` to `copied_ns`.
        """
        at = self._heads[sequence & SLOT_MASK]
        # The slot still names an earlier sequence until all else is written.
        _pack_before_sequence(self._bytes, (at + 1) * WORD, *head)
        # ORDER: payload and head before the sequence; pairs with reply.
        if not IN_ORDER:
            fence()
        words = self._words
        words[at] = sequence
        # ORDER: the sequence before the counter, which a spinning client polls; pairs with counter_poller.py.
        # One that sees the counter alone has used up its token, and waits for the next.
        if not IN_ORDER:
            fence()
        words[self._counter] += 1  # only the serving engine writes it

    def reply(self, kind: type[_Head], sequence: int, /) -> _Head | None:
        """Return a copy of the head of the reply to `sequence`; None while it is not published."""
        at = self._heads[sequence & SLOT_MASK]
        if self._words[at] != sequence:
            return None
        # ORDER: the sequence before head and payload; pairs with complete.
        if not IN_ORDER:
            fence()
        return _new(kind, _unpack_reply(self._bytes, at * WORD))

    def _count(self) -> int:
        """Return the segment's counter."""
        return self._words[self._counter]

    def _is_begun(self, sequence: int, /) -> bool:
        """Whether an engine has begun `sequence`, or answered it or a later one in its slot."""
        at = self._heads[sequence & SLOT_MASK]
        return self._words[at + _TAKEN] == sequence or self._words[at] >= sequence

    def close(self) -> None:
        """Release the memory; may be called twice."""
        self._heads, self._slots = _closed, 1 << 64
        self._words.release()
        self._bytes.release()
