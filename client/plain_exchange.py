"""Asks plain requests in as few steps as there can be; all else as Exchange does."""

from __future__ import annotations

import threading
from typing import Any

from shmserve.backend import core
from shmserve.protocol import Flag
from shmserve.ring import ReplyHead

from .attachment import Attachment
from .exchange import Exchange
from .pending import Pending
from .settling import READ_ERRORS


class PlainExchange(Exchange):
    """An `Exchange` with a short way from an observation to its result, for a request that nothing is special about.

    Nothing else of this client is out or on loan, and it and its result are of the structures that were learnt from the
    last that went the long way. The native core (native/python/asking.c) does most of it; whatever turns out otherwise goes
    on by the long way from where it is.
    """

    def ask(self, pending: Pending, observation: Any) -> bool:
        """Publish, and wait until `pending` is settled; raises as `Pending.result`. False: nothing was done."""
        if self._is_inside():
            return False  # the long way tells what is the matter
        me, waits = threading.get_ident(), False
        try:
            with self._lock:
                attachment = self._attachment_for_plain()
                if attachment is None or (asking := attachment.asking) is None:
                    return False
                try:
                    if not asking.send(observation, pending.deadline_ns, attachment.in_flight, pending):
                        return False
                except READ_ERRORS:
                    return False  # as in Encoder.encode: the long way tells what is the matter
                channel = attachment.channel
                channel.request_bell.ring()
                self._waiter = me
                waits = True
            self._news.wait(channel, pending.deadline_ns, True)
            with self._lock:
                settled = self._settle_plain(attachment, asking, pending)
        finally:
            # No call before the store, as in _wait_for_reply.
            if waits and self._waiter == me:
                self._waiter = 0
                self._parking_lot.unpark_all()
        if not settled or self.model_watch is not None:
            pending.result()
        return True

    def learn(self, pending: Pending) -> None:
        """Requests and results like these, which went the long way, are plain from now on."""
        with self._lock:
            head, known = pending._head, self._encoder.latest
            if not self._held or head is None or head.flags & Flag.PICKLED or known is None or known.encoder is None:
                return
            attachment = self._held[0]
            channel, reply = attachment.channel, attachment.decoder.known(head.schema)
            requests, replies = channel.requests, channel.replies
            if attachment.closed or (attachment is not self._checked and self._check_contract):
                return
            if reply is None or reply.decoder is None or not reply.is_all_arrays:
                return
            if attachment.asking is None:
                if requests.native is None or replies.native is None:
                    return
                attachment.asking = core.Asking(
                    requests.native,
                    requests.memories,
                    requests.rotating_slots,
                    replies.native,
                    replies.memories,
                    replies.poller,
                )
            attachment.asking.learn(known.encoder, known.schema_id, known.metadata_bytes, reply.decoder, head.schema)

    def _attachment_for_plain(self) -> Attachment | None:
        """The one that a plain request may go through now; in a forked child none is held."""
        if self._closed or self._waiter or self._left or self._loaned is not None or not self._held:
            return None
        attachment = self._held[0]
        return None if attachment.closed or attachment.moving or attachment.lent else attachment

    def _settle_plain(self, attachment: Attachment, asking: core.Asking, pending: Pending) -> bool:
        """Settle it with its reply; False if that is not there, or not plain, or another thread was faster."""
        found = asking.receive(ReplyHead)
        if found is None or attachment.in_flight.get(pending.sequence) is not pending:
            return False
        # No call from here on, nor anything else that runs other code.
        pending._result, pending._head, pending._settled_ns = found
        self.last = pending._head, pending._settled_ns - pending._started_ns
        del attachment.in_flight[pending.sequence]  # last: an interrupt before it must not lose the reply
        return True
