"""Recording of served requests and their replies on a record ring."""

from __future__ import annotations

import numpy as np

from shmserve.codec import Encoder, SlotMemory
from shmserve.layout import MAX_PAYLOAD_BYTES
from shmserve.metadata import MetadataError
from shmserve.protocol import Flag, Kind, Status
from shmserve.record_ring import Entry, RecordRingWriter
from shmserve.ring import ReplyHead, RequestHead

from ..channel.channel_state import ChannelState
from .serving import QueuedRequest, Serving

_NOTHING = np.empty(0, np.uint8)
#: Room for the metadata of a deferred reply, which has no bytes in a slot yet.
_METADATA_BYTES = 1 << 16


class RecordedServing:
    """Replacement of `Serving` during a recording, so that requests cost nothing extra at other times."""

    def __init__(self, serving: Serving, record_ring: RecordRingWriter, channel: int | None) -> None:
        """Record the requests of `channel`, or of every channel if it is None."""
        self._serving = serving
        self._record_ring = record_ring
        self._channel = channel
        self.max_batch = serving.max_batch

    def serve(self, batch: list[QueuedRequest]) -> None:
        """Answer as `Serving.serve` does, and copy each request and reply to the record ring."""
        # The observation is copied before the model runs: a policy may write to it, and if the engine dies of it, it is
        # on the record ring. The reply is copied after the client has it.
        noted = [taken for taken in batch if self._note_request(*taken)]
        self._serving.serve(batch)
        for state, head in noted:
            self._note_reply(state, head.sequence)

    def serve_fast(self, state: ChannelState) -> bool:
        """Return False: the fast path records nothing."""
        return False

    def warm(self, state: ChannelState) -> bool:
        """Do nothing: the slow path, which records, is not warmed."""
        return False

    def client_left(self, client_id: int) -> None:
        """Notify the model as `Serving.client_left` does."""
        self._serving.client_left(client_id)

    def _note_request(self, state: ChannelState, head: RequestHead) -> bool:
        if self._channel is not None and state.number != self._channel:
            return False
        if head.flags & Flag.PICKLED:
            self._record_ring.count_skipped()
            return False
        metadata = payload = _NOTHING
        if head.kind == Kind.INFER:
            # The lengths in the head come from the client: slicing limits them to the slot.
            slot = state.channel.requests.memory(head.sequence)
            if _has_arrays_on_gpu(state, head, slot):
                self._record_ring.count_skipped()  # their bytes are not in the slot
                return False
            metadata, payload = slot.metadata[: head.metadata_bytes], slot.payload[: head.payload_bytes]
        return self._record_ring.write(Entry.REQUEST, state.number, _generation(state), head, metadata, payload)

    def _note_reply(self, state: ChannelState, sequence: int) -> None:
        head = state.channel.replies.head(sequence)
        slot = state.channel.replies.memory(sequence)
        if head.status == Status.RESIZE_REQUIRED and sequence in state.deferred_replies:
            (status, flags, version, *durations), tree = state.deferred_replies[sequence]
            slot = SlotMemory(
                np.empty(_METADATA_BYTES, np.uint8), np.empty(min(head.payload_bytes, MAX_PAYLOAD_BYTES), np.uint8)
            )
            try:
                encoded = Encoder(tensors_as_arrays=True, name="action").encode(tree, slot)
            # The reply has to be pickled, or its client changed its size, or the reply's own code raised.
            except BaseException:  # noqa: BLE001
                self._record_ring.count_skipped()
                return
            lengths = (encoded.schema, encoded.metadata_bytes, encoded.payload_bytes)
            head = ReplyHead._make((sequence, status, flags, *lengths, version, *durations, 0, sequence, 1))
        if head.flags & Flag.PICKLED:
            self._record_ring.count_skipped()
            return
        metadata, payload = slot.metadata[: head.metadata_bytes], slot.payload[: head.payload_bytes]
        self._record_ring.write(Entry.REPLY, state.number, _generation(state), head, metadata, payload)


def _has_arrays_on_gpu(state: ChannelState, head: RequestHead, slot: SlotMemory) -> bool:
    try:
        return state.schemas.get(head.schema, head.metadata_bytes, slot).reader.has_device
    except MetadataError:  # it will be rejected
        return False


def _generation(state: ChannelState) -> int:
    return state.channel_info.identity.generation
