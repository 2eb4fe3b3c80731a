"""Both halves of the native fast path over plain memory of this process, and the slots and encoders that they need."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, final

import numpy as np
import numpy.typing as npt

from shmserve.carried_values import carried
from shmserve.codec import SlotMemory
from shmserve.flatten import flatten
from shmserve.layout import SLOT_HEAD_BYTES, WORD
from shmserve.protocol import Kind
from shmserve.ring import ReplyHead, RequestHead
from tests.support.native import core

_LINE, _FIRST, _STRIDE = 8, 16, SLOT_HEAD_BYTES // WORD
Convert = Callable[[Any], "tuple[int, Any]"]


def slot_memory(payload_bytes: int = 4096, metadata_bytes: int = 2048) -> SlotMemory:
    """Return memory that is full of what an earlier request left."""
    return SlotMemory(np.full(metadata_bytes, 0xAA, np.uint8), np.full(payload_bytes, 0xAA, np.uint8))


def metadata_of(tree: Any) -> bytes:
    """Return the metadata as the walk in Python writes it."""
    return flatten(tree, "tree").metadata


def slots_memory(slots: int = 2) -> npt.NDArray[np.uint8]:
    return np.zeros((_FIRST + slots * _STRIDE) * WORD, np.uint8)


def new_slots(slots: int = 2, memory: Any = None) -> core.Slots:
    memory = slots_memory(slots) if memory is None else memory
    return core.Slots(memory, _LINE, _FIRST, _STRIDE, slots)


def encoder_of(*trees: Any, convert: Convert = carried) -> core.TreeEncoder:
    """Return an encoder that remembers the structures of these trees, by the schemas 1, 2 and so on."""
    encoder = core.TreeEncoder(convert)
    for number, tree in enumerate(trees, 1):
        encoder.remember(metadata_of(tree), number, None)
    return encoder


def decoders_of(*trees: Any) -> dict[int, core.TreeDecoder]:
    return {number: core.TreeDecoder(metadata_of(tree)) for number, tree in enumerate(trees, 1)}


@final
class NativeEnds:
    """A client's half and an engine's half, which know the structures of the same trees."""

    def __init__(
        self,
        *trees: Any,
        slots: int = 4,
        payload_bytes: int = 4096,
        wrap: Any = None,
        in_place: bool = False,
        convert: Convert = carried,
        reply_bell: Any = None,
    ) -> None:
        self.request_memory, self.reply_memory = slots_memory(slots), slots_memory(slots)
        self.requests, self.replies = new_slots(slots, self.request_memory), new_slots(slots, self.reply_memory)
        self.sent = [slot_memory(payload_bytes) for _ in range(slots)]
        self.taken = [SlotMemory(memory.metadata, memory.payload) for memory in self.sent]
        self.answers = [slot_memory(payload_bytes) for _ in range(slots)]
        self.received = [SlotMemory(memory.metadata, memory.payload) for memory in self.answers]
        self.client_encoder, self.engine_encoder = (encoder_of(*trees, convert=convert) for _ in range(2))
        self.client_decoders, self.engine_decoders = decoders_of(*trees), decoders_of(*trees)
        self.poller = core.CounterPoller(self.reply_memory, _LINE)
        self.client = core.ClientFastPath(
            self.requests,
            self.sent,
            slots,
            self.replies,
            self.received,
            self.poller,
            self.client_encoder,
            self.client_decoders,
            None,
            reply_bell,
        )
        self.engine = core.ServerFastPath(
            self.requests,
            self.taken,
            self.replies,
            self.answers,
            None,
            wrap,
            self.engine_decoders,
            self.engine_encoder,
            in_place,
        )
        if not in_place:
            self.engine.use_arena(np.zeros(payload_bytes, np.uint8))
        self.in_flight: dict[int, Any] = {}
        self.seen = 0

    def send(
        self,
        tree: Any,
        *,
        kind: int = Kind.INFER,
        flags: int = 0,
        deadline_ns: int = 0,
        capture_ns: int = 0,
        max_age_ns: int = 0,
        pending: Any = None,
        in_flight: Any = None,
        leads: bool = False,
    ) -> bool | None:
        return self.client.try_send(
            tree,
            SimpleNamespace(sequence=0) if pending is None else pending,
            self.in_flight if in_flight is None else in_flight,
            leads,
            kind,
            flags,
            deadline_ns,
            capture_ns,
            max_age_ns,
        )

    def take(self) -> Any:
        """Take the next request, which becomes the last one that was seen."""
        observation = self.engine.try_take(self.seen)
        self.seen = self.engine.sequence or self.seen
        return observation

    def head(self) -> RequestHead:
        return self.engine.head(RequestHead)

    def receive(self) -> tuple[Any, ReplyHead, int] | None:
        found = self.client.try_receive(ReplyHead)
        if found is not None:
            self.in_flight.pop(found[1].sequence, None)
        return found

    def ask(self, tree: Any) -> Any:
        """Carry a tree to the engine and back, and return it."""
        assert self.send(tree)
        observation = self.take()
        assert self.engine.sequence == self.client.sequence
        assert self.engine.reply(observation, 0, 7, 5) >= 0
        found = self.receive()
        assert found is not None
        return found[0]
