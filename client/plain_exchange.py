"""Asks plain requests in as few steps as there can be; all else as Exchange does."""

from __future__ import annotations

import contextlib
import struct
import threading
from typing import Any

from shmserve.compiled import steps
from shmserve.layout import SLOT_BITS, SLOT_MASK
from shmserve.protocol import Flag
from shmserve.ring import ReplyHead

from .attachment import Attachment
from .exchange import Exchange
from .pending import Pending

#: What `send` says of a tree that it has published.
_PUBLISHED = 1


class PlainExchange(Exchange):
    """An `Exchange` with a short way from an observation to its result, for a request that nothing is special about.

    Nothing else of this client is out or on loan, it is of the structure that was sent last, and its result of the one
    that came last. What is compiled (compiled/asking.c) does most of it; whatever turns out otherwise goes on by the long
    way from where it is.
    """

    def ask(self, pending: Pending, observation: Any) -> bool:
        """Publish, and wait until `pending` is settled; raises as `Pending.result`. False: nothing was done."""
        me = threading.get_ident()
        try:
            with self._lock:
                attachment = self._publish_plain(pending, observation, me)
                if attachment is None:
                    return False
                # Under the lock: another thread may collect as soon as it is free, and note a later count.
                channel, answered = attachment.channel, attachment.answered
            self._news.wait(channel, answered, pending.deadline_ns, True)
            with self._lock:
                settled = self._settle_plain(attachment, pending)
        finally:
            # No call before the store, as in _wait_for_reply.
            if self._waiter == me:
                self._waiter = 0
                self._followers.wake()
        if settled and self.model_watch is None:
            return True
        pending.result()
        return True

    def learn(self, pending: Pending) -> None:
        """Results like this one, which came the long way, are plain from now on."""
        head = pending._head
        if not self._held or head is None or head.flags & Flag.PICKLED:
            return
        attachment = self._held[0]
        schema = attachment.decoder.known(head.schema)
        if schema is not None and schema.receiver is not None and schema.only_arrays:
            attachment.plain_reply = head.schema, schema.receiver

    def _publish_plain(self, pending: Pending, observation: Any, me: int) -> Attachment | None:
        """As `try_publish`, and become the one that waits at the doorbell; None: nothing has happened."""
        if self._closed or self._forked or not self._held:
            return None
        attachment, known = self._held[0], self._encoder.latest
        if attachment.plain_reply is None or attachment.in_flight or attachment.lent or attachment.closed:
            return None
        if attachment.moving or self._loaned is not None or self._waiter or self._left:
            return None
        if known is None or known.sender is None or (attachment is not self._checked and self._check_contract):
            return None
        requests, replies = attachment.channel.requests, attachment.channel.replies
        if requests.compiled is None:
            return None
        number = (requests.words[requests.counter] >> SLOT_BITS) + 1
        slot = number % requests.turning
        memory = requests.memories[slot]
        if memory.written_schema != known.schema_id:
            return None
        pending.sequence = sequence = number << SLOT_BITS | slot
        # Nothing else is out, so that whatever moves this count is of this request.
        attachment.answered = replies.words[replies.counter]
        attachment.in_flight[sequence] = pending
        found = 0
        # As in Encoder.encode: the long way tells what is the matter.
        with contextlib.suppress(struct.error, ValueError, OverflowError, TypeError):
            found = steps.send(
                known.sender,
                observation,
                memory.payload,
                requests.compiled,
                memory.ring,
                sequence,
                pending.deadline_ns,
                known.schema_id,
                known.metadata_bytes,
            )
        if found != _PUBLISHED:
            attachment.in_flight.pop(sequence, None)
            return None
        attachment.channel.request_bell.ring()
        self._waiter = me
        return attachment

    def _settle_plain(self, attachment: Attachment, pending: Pending) -> bool:
        """Settle it with its reply; False if that is not there, or not plain, or another thread was faster."""
        replies, sequence = attachment.channel.replies, pending.sequence
        plain, slots, memories = attachment.plain_reply, replies.compiled, replies.memories
        if attachment.in_flight.get(sequence) is not pending or pending._settled_ns or not memories:
            return False
        if plain is None or slots is None:
            return False
        schema, receiver = plain
        payload = memories[sequence & SLOT_MASK].payload
        found = steps.receive(receiver, ReplyHead, slots, sequence, payload, schema)
        if found is None:
            return False
        tree, head = found
        pending._settle(tree, None, head)
        self.last = (head, pending._settled_ns - pending._started_ns)
        del attachment.in_flight[sequence]  # last: an interrupt before it must not lose the reply
        return True
