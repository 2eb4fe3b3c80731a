"""The requests that are out: published into slots, and waited for at the doorbell."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from typing import Any

from shmserve.codec import DoesNotFit, Encoded, SlotMemory
from shmserve.errors import (
    ContractMismatch,
    LoanEnded,
    OutOfMemory,
    ReentrantCall,
    RequestRejected,
    RequestTimeout,
    ServiceUnavailable,
    ShmServeError,
    SlotsExhausted,
)
from shmserve.layout import slot_of
from shmserve.protocol import Flag, Kind

from .attachment import Attachment
from .contract_check import check_structure
from .daemon_calls import DaemonCalls
from .lending import LentSlot
from .news import LONGEST_WAIT_NS
from .pending import Pending
from .retry_policy import RetryPolicy
from .settling import READ_ERRORS
from .terms import Step, Terms

#: A daemon whose model is still being loaded is asked for its contract no more often.
_ASK_AGAIN_NS = 100_000_000
#: A daemon is asked for so long, at most, why a request came to nothing.
_LONGEST_LOOK_NS = 50_000_000

_PLAIN = Terms()
#: Plain numbers, as in settling.py.
_WAIT, _DONE = Step.WAIT, Step.DONE


class Exchange(DaemonCalls):
    """One client's side of its channel, across attachments. Safe to call from several threads."""

    # Publishing

    def publish(
        self, pending: Pending, observation: Any, terms: Terms = _PLAIN, retry: RetryPolicy | None = None
    ) -> None:
        """Encode into the next slot and make it visible; waits for a free slot until the deadline.

        Raises SlotsExhausted, ServiceUnavailable, and what the codec refuses.
        """
        while (step := self.try_publish(pending, observation, terms)) != _DONE:
            self._take(step, pending.deadline_ns, retry)

    def try_publish(self, pending: Pending, observation: Any, terms: Terms = _PLAIN) -> int:
        """Publish if that needs no waiting at all; any other step than DONE: nothing has happened."""
        self.check_not_inside()
        with self._lock:
            attachment = self._held[0] if self._held else None
            sequence = self._claim(attachment, observation, terms.kind)
            if attachment is None or sequence <= _WAIT:
                return sequence
            memory = attachment.channel.requests.memories[slot_of(sequence)]
            try:
                encoded = self._encode(observation, memory, apart=terms.kind != Kind.INFER)
            except DoesNotFit as needed:
                self._wanted.grow_requests(needed.metadata_bytes, needed.payload_bytes)
                return Step.RESIZE_REQUIRED
            except ContractMismatch:
                if self._may_have_another_model(attachment):
                    return Step.CONNECT
                raise
            self._send(attachment, pending, sequence, encoded, terms)
            return _DONE

    def _encode(self, observation: Any, memory: SlotMemory, *, lent: bool = False, apart: bool = False) -> Encoded:
        try:
            if apart:
                return self._encoder.encode_apart(observation, memory)
            return self._encoder.encode(observation, memory, lent=lent)
        except (DoesNotFit, ShmServeError):
            raise
        except READ_ERRORS as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ShmServeError:
        """What an object of the observation, or what stands behind it, has raised while it was read."""
        if isinstance(error, MemoryError):
            return OutOfMemory(f"this process has no memory to send the observation to {self.name!r}: {error}")
        return RequestRejected(
            f"the observation for {self.name!r} cannot be read: {type(error).__name__}: {error}: send arrays and tensors "
            "that have data, on a device that this process can read (tensor.cpu())"
        )

    def _take(self, step: int, deadline_ns: int, retry: RetryPolicy | None = None) -> None:
        """Do what the step says, or a part of it; the caller tries again."""
        if step == Step.CONNECT:
            self.connect(deadline_ns, retry)
        elif step == Step.WAIT or not self.make_room(deadline_ns):
            self._wait_for_slot(deadline_ns)
            if time.monotonic_ns() >= deadline_ns:
                raise self.full_error(step)

    def _claim(self, attachment: Attachment | None, observation: Any, kind: Kind) -> int:
        """The sequence whose slot may be written now, or what has to be done before there is one: no step is as high."""
        if self._closed or self._forked:
            self.check_usable()
        if attachment is None or attachment.closed:
            return Step.CONNECT
        if attachment is not self._checked and self._check_contract and kind == Kind.INFER:
            # Once there is a model, the first observation of each structure is compared with what it takes.
            self._encoder.examine = None  # it may know an earlier attachment's model
            if attachment.model is not None:
                self._encoder.forget()
                self._encoder.examine = functools.partial(check_structure, self.name, attachment)
                self._checked = attachment
            elif time.monotonic_ns() - attachment.asked_ns > _ASK_AGAIN_NS:
                return Step.CONNECT
        if self._loaned is not None and (loan := self._loaned()) is not None:
            if loan.thread == threading.get_ident():
                raise SlotsExhausted(
                    "a request slot is lent out: send() it, or leave its block, before the next request"
                )
            return Step.WAIT
        if attachment.moving:
            if self._caller == threading.get_ident():
                raise self.reentrant_error()
            return Step.WAIT
        sequence = 0 if attachment.carried else attachment.next_sequence()
        return sequence or self._claim_after_a_look(attachment)

    def _may_have_another_model(self, attachment: Attachment) -> bool:
        """Whether the model is to be asked for again, because it may have been updated since."""
        if time.monotonic_ns() - attachment.asked_ns <= _ASK_AGAIN_NS:
            return False
        attachment.model = None
        return True

    def _claim_after_a_look(self, attachment: Attachment) -> int:
        self._collect(attachment)
        if attachment.carried:
            return Step.RESIZE_REQUIRED
        sequence = attachment.next_sequence()
        if sequence:
            return sequence
        lent = [loan for loan in map(attachment.lent_reply, tuple(attachment.lent)) if loan is not None]
        if not attachment.in_flight and any(loan.thread == threading.get_ident() for loan in lent):
            raise SlotsExhausted(
                f"every slot of {self.name!r} holds a reply that is lent out: leave its block first, or make the client "
                "with more slots"
            )
        return Step.WAIT

    def _wait_for_slot(self, deadline_ns: int) -> None:
        with self._lock:
            on_loan = self._loaned is not None and self._loaned() is not None
            awaited = bool(self._held) and len(self._held[0].in_flight) > len(self._held[0].carried)
        if awaited and not on_loan and not self._caller:
            self._wait_for_reply(deadline_ns, None)
        else:
            self._parking_lot.park(deadline_ns)  # it is another thread that ends a loan, or a call

    def full_error(self, step: int = Step.WAIT) -> SlotsExhausted:
        """Why there was no slot in time."""
        if step == Step.RESIZE_REQUIRED:
            return SlotsExhausted(f"requests or loans that are out kept {self.name!r} from making larger slots in time")
        return SlotsExhausted(
            f"every slot of {self.name!r} holds a request without a reply, or is lent out: collect results before "
            "sending more, or make the client with more slots"
        )

    def _send(self, attachment: Attachment, pending: Pending, sequence: int, encoded: Encoded, terms: Terms) -> None:
        if self._forked:
            self.check_owner()  # by an object of the observation, or a handler meanwhile
        channel = attachment.channel
        requests = channel.requests
        pending.sequence = sequence
        # Before it is published: an interrupt between the two must not lose a reply.
        attachment.in_flight[sequence] = pending
        requests.publish(
            (
                sequence,
                terms.kind,
                terms.flags | Flag.PICKLED if encoded.pickled else terms.flags,
                pending.deadline_ns,
                terms.capture_ns,
                terms.max_age_ns,
                time.monotonic_ns(),
                encoded.schema,
                encoded.metadata_bytes,
                encoded.payload_bytes,
                0,
                requests.memories[slot_of(sequence)].write_id,
            )
        )
        channel.request_bell.ring()

    # Lending a slot

    def borrow(self, example: Any, deadline_ns: int) -> tuple[LentSlot, Any]:
        """Lend the next request slot out, laid out for trees like `example`.

        Returns the loan, which lasts as long as somebody holds it, and the example's tree with arrays that
        are slot memory. `give_back` or `send_borrowed` ends it and makes the arrays read-only.
        """
        while True:
            self.check_not_inside()
            with self._lock:
                attachment = self._held[0] if self._held else None
                step = self._claim(attachment, example, Kind.INFER)
                if attachment is not None and step > Step.WAIT:
                    try:
                        tree, arrays = self._encoder.lay_out(example, attachment.channel.requests.memory(step))
                        loan = LentSlot(attachment, step, arrays)
                        self._loaned = weakref.ref(loan)
                        return loan, tree
                    except DoesNotFit as needed:
                        self._wanted.grow_requests(needed.metadata_bytes, needed.payload_bytes)
                        step = Step.RESIZE_REQUIRED
                    except ContractMismatch:
                        if not self._may_have_another_model(attachment):
                            raise
                        step = Step.CONNECT
                    except ShmServeError:
                        raise
                    except READ_ERRORS as error:
                        raise self._unreadable(error) from error
            self._take(step, deadline_ns)

    def send_borrowed(self, pending: Pending, loan: LentSlot, observation: Any, terms: Terms) -> None:
        """Publish a borrowed slot; what already lies in it is not copied."""
        self.check_not_inside()
        with self._lock:
            self.check_usable()
            if self._loaned is None or self._loaned() is not loan:
                raise LoanEnded("this loan has ended: borrow another")
            attachment = loan.attachment
            if attachment.closed or attachment.lost():
                self.check_usable()  # closing the client hangs up, too
                raise ServiceUnavailable(
                    f"the daemon of {self.name!r} went away while the slot was on loan; nothing was sent: borrow another"
                )
            try:
                memory = attachment.channel.requests.memory(loan.sequence)
                encoded = self._encode(observation, memory, lent=True)
            except DoesNotFit as needed:
                raise RequestRejected(
                    f"the observation outgrew the slot that was lent for it ({needed}): borrow one for its new shape"
                ) from needed
            loan.end()
            self._loaned = None
            self._send(attachment, pending, loan.sequence, encoded, terms)
        self._parking_lot.unpark_all()

    def give_back(self, loan: LentSlot) -> None:
        """A borrowed slot was not sent."""
        loan.end()
        with self._lock:
            if self._loaned is not None and self._loaned() is loan:
                self._loaned = None
        self._parking_lot.unpark_all()

    # Waiting: one thread at the doorbell, the others behind it

    def wait(self, pending: Pending, until_ns: int, *, spin: bool = True) -> None:
        """Until `pending` is settled; RequestTimeout at `until_ns`."""
        self.check_not_inside()
        began_ns = time.monotonic_ns()
        while not pending._settled_ns:
            self._wait_for_reply(until_ns, pending, spin=spin)
            now_ns = time.monotonic_ns()
            if pending._settled_ns or now_ns < until_ns:
                continue
            if until_ns < pending.deadline_ns:
                raise RequestTimeout(
                    f"no reply from {self.name!r} to request {pending.number} within the {(now_ns - began_ns) / 1e9:.3g} s "
                    f"of this wait: the request goes on until its deadline, in {(pending.deadline_ns - now_ns) / 1e9:.3g} s; "
                    "call result() again, or cancel()"
                )
            self.abandon(pending)
            raise self.timeout_error(pending)

    def timeout_error(self, pending: Pending) -> RequestTimeout:
        """The deadline of `pending` has passed; asks the daemon, for a moment, whether it serves at all."""
        waited_ns = time.monotonic_ns() - pending._started_ns
        reason = self.reason_without_model(min(_LONGEST_LOOK_NS, waited_ns // 20))
        what = f"no reply from {self.name!r} to request {pending.number}"
        if reason:
            return RequestTimeout(f"{what} within {waited_ns / 1e9:.3g} s: {reason} (a late one is discarded)")
        return RequestTimeout(f"{what} within {waited_ns / 1e9:.3g} s (a late one is discarded)")

    def wait_a_while(self) -> None:
        """For a thread that waits on behalf of others, and must not hold the interpreter while it does."""
        until_ns = time.monotonic_ns() + LONGEST_WAIT_NS
        if self._held and not self._closed:
            self._wait_for_reply(until_ns, None, spin=False)
        else:
            self.check_usable()
            self._parking_lot.park(until_ns)

    def look(self) -> None:
        """Collect what is there, without waiting for replies."""
        self.check_owner()
        if self._closed or self._is_inside():
            return  # what is out ends with ClientClosed; or the interrupted call may be collecting
        grown = False
        with self._lock:
            for attachment in tuple(self._held):
                self._collect(attachment)
                if attachment.in_flight and attachment.lost():
                    self._lose(attachment)
                grown |= bool(attachment.carried)
        if grown:
            # Whoever only polls must get a result that did not fit, too.
            # `result` tells of the loan that is in the way, or is called when no other call is interrupted.
            with contextlib.suppress(SlotsExhausted, ReentrantCall):
                self.make_room(time.monotonic_ns())

    def _wait_for_reply(self, until_ns: int, pending: Pending | None, *, spin: bool = True) -> None:
        """Until some reply has arrived and was collected, or a bounded while; the caller looks again."""
        me = threading.get_ident()
        interrupts = self._waiter == me  # another wait of this thread, by a signal handler or a finalizer
        try:
            with self._lock:
                if self._closed or self._forked:
                    self.check_usable()
                if (pending is not None and pending._settled_ns) or not self._held:
                    return
                waits = self._waiter in (0, me)
                if waits:
                    # Not a lock, which Ctrl-C at the wrong moment would leave locked for ever.
                    self._waiter = me
                    if self._left and not interrupts:
                        self._close_left()
                    attachment = self._held[0]
                    replies = attachment.channel.replies
                    answered = replies.words[replies.counter]
                    if answered != attachment.answered and self._collect(attachment):
                        return
                    replies.poller.last_seen = answered  # the waiting thread's own note: others may collect meanwhile
            if not waits:
                self._parking_lot.park(until_ns)
                return
            self._news.wait(attachment.channel, until_ns, spin)
            with self._lock:
                if not self._collect(attachment) and attachment.lost():
                    self._lose(attachment)
            if attachment.carried:
                if pending is not None and pending._settled_ns:
                    # Its own reply may be lent out now; another thread, or the next request, finds the slots as they are.
                    with contextlib.suppress(SlotsExhausted):
                        self.make_room(until_ns)
                else:
                    self.make_room(until_ns)
            if self._left and not interrupts:
                with self._lock:
                    self._close_left()
        finally:
            # No call before the store: Python looks for signals at calls.
            if self._waiter == me and not interrupts:
                self._waiter = 0
                self._parking_lot.unpark_all()
