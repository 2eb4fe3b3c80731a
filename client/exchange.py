"""The requests that are out: published, waited for, collected. All of it under one lock, but nothing that waits."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from shmserve.channel import ClientChannel
from shmserve.codec import DoesNotFit, Encoded, Encoder
from shmserve.errors import (
    ClientClosed,
    ClientForked,
    InferenceFailed,
    ObservationTooLarge,
    RequestRejected,
    RequestTimeout,
    RingFull,
    ServiceUnavailable,
)
from shmserve.layout import SLOT_MASK, number_of
from shmserve.protocol import Flag, Kind, Status
from shmserve.ring import ReplyHead
from shmserve.spin import SpinBudget
from shmserve.varlink_connection import VarlinkConnection

from .attachment import Attachment, ChannelRefused, Wanted, end_calls
from .contract_check import check_observation
from .followers import Followers
from .forks import note_owned
from .lending import LentSlot
from .model_watch import ModelWatch
from .news import LONGEST_WAIT_NS, News
from .pending import Pending
from .settling import settle
from .terms import Step, Terms

#: A resize that has begun is given so long, however little time its request has left.
_LEAST_RESIZE_S = 1.0
#: A daemon whose model is still being loaded is asked for its contract no more often.
_ASK_AGAIN_NS = 100_000_000

#: Plain numbers, as in settling.py.
_GROW = int(Status.GROW)
_WAIT, _DONE = Step.WAIT, Step.DONE

_T = TypeVar("_T")


_PLAIN = Terms()


class Exchange:
    """One client's side of its channel, across attachments. Safe to call from several threads."""

    def __init__(
        self,
        name: str,
        directory: Path,
        wanted: Wanted,
        budget: SpinBudget,
        max_retries: int,
        retry_delay_s: float,
        *,
        check_contract: bool = True,
    ) -> None:
        self.name = name
        self.max_retries = max_retries
        self.retry_delay_s = retry_delay_s
        #: The head of the latest reply, and the request's round trip (ns).
        self.last: tuple[ReplyHead, int] | None = None
        #: Replies that came after their deadline and were thrown away.
        self.late_replies = 0
        #: Who wants to know when another model version answers; asked by `Pending.result`, outside the lock.
        self.model_watch: ModelWatch | None = None
        self._directory = directory
        self._wanted = wanted
        self._news = News(budget)
        self._encoder = Encoder()
        self._lock = threading.RLock()
        self._waiter = 0  # the thread that waits at the doorbell, for all; 0 for none
        self._followers = Followers()  # the threads behind it, or behind the one that talks to the daemon
        self._held: list[Attachment] = []  # at most one; a list, so that the finalizer needs no self
        self._left: list[Attachment | ClientChannel] = []  # to be closed by `_close_left`
        self._check_contract = check_contract
        self._checked: Attachment | None = None  # the one whose model has seen what this client sends
        self._stateful: bool | None = None  # what the daemon said of its model when this client attached,
        self._last_before: tuple[ReplyHead, int] | None = None  # and the latest reply at that time
        self._loaned: weakref.ref[LentSlot] | None = None
        self._caller = 0  # the thread that talks to the daemon; 0 for none
        self._connecting: VarlinkConnection | None = None  # the latest that may not have a channel yet
        self._closed = False
        self._forked = False
        # Not at exit: threads may be waiting at the doorbell then, and the kernel gives everything back.
        weakref.finalize(self, _close_all, self._held, self._left).atexit = False
        note_owned(self)

    # Publishing

    def publish(self, pending: Pending, observation: Any, terms: Terms = _PLAIN) -> None:
        """Encode into the next slot and make it visible; waits for a free slot until the deadline.

        Raises RingFull, ServiceUnavailable, and what the codec refuses.
        """
        while (step := self.try_publish(pending, observation, terms)) != _DONE:
            self._take(step, pending.deadline_ns)

    def try_publish(self, pending: Pending, observation: Any, terms: Terms = _PLAIN) -> int:
        """Publish if that needs no waiting at all; any other step than DONE: nothing has happened."""
        with self._lock:
            sequence = self._claim(observation, terms.kind)
            if sequence <= _WAIT:
                return sequence
            attachment = self._held[0]
            memory = attachment.channel.requests.memories[sequence & SLOT_MASK]
            try:
                encoded = self._encoder.encode(observation, memory)
            except DoesNotFit as needed:
                self._wanted.grow_requests(needed.metadata_bytes, needed.payload_bytes)
                return Step.GROW
            self._send(attachment, pending, sequence, encoded, terms)
            return _DONE

    def _take(self, step: int, deadline_ns: int) -> None:
        """Do what the step says, or a part of it; the caller tries again."""
        if step == Step.CONNECT:
            self.connect(deadline_ns)
        elif step == Step.WAIT or not self.make_room(deadline_ns):
            self._wait_for_slot(deadline_ns)
            if time.monotonic_ns() >= deadline_ns:
                raise self.full_error(step)

    def _claim(self, observation: Any, kind: Kind) -> int:
        """The sequence whose slot may be written now, or what has to be done before there is one: no step is as high."""
        if self._closed or self._forked:
            self.check_usable()
        if not self._held or (attachment := self._held[0]).closed:
            return Step.CONNECT
        if attachment is not self._checked and self._check_contract and kind == Kind.INFER:
            # The first observation of an attachment; once there is a model.
            if attachment.model is not None:
                check_observation(self.name, attachment.model, observation)
                self._checked = attachment
            elif time.monotonic_ns() - attachment.asked_ns > _ASK_AGAIN_NS:
                return Step.CONNECT
        if self._loaned is not None and (loan := self._loaned()) is not None:
            if loan.thread == threading.get_ident():
                raise RingFull("a request slot is lent out: send() it, or leave its block, before the next request")
            return Step.WAIT
        if attachment.moving:
            return Step.WAIT
        sequence = 0 if attachment.carried else attachment.next_sequence()
        return sequence or self._claim_after_a_look(attachment)

    def _claim_after_a_look(self, attachment: Attachment) -> int:
        self._collect(attachment)
        if attachment.carried:
            return Step.GROW
        sequence = attachment.next_sequence()
        if sequence:
            return sequence
        lent = [loan for loan in map(attachment.lent_reply, tuple(attachment.lent)) if loan is not None]
        if not attachment.in_flight and any(loan.thread == threading.get_ident() for loan in lent):
            raise RingFull(
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
            self._followers.follow(deadline_ns)  # it is another thread that ends a loan, or a call

    def full_error(self, step: int = Step.WAIT) -> RingFull:
        """Why there was no slot in time."""
        if step == Step.GROW:
            return RingFull(f"requests or loans that are out kept {self.name!r} from making larger slots in time")
        return RingFull(
            f"every slot of {self.name!r} holds a request without a reply, or is lent out: collect results before "
            "sending more, or make the client with more slots"
        )

    def _send(self, attachment: Attachment, pending: Pending, sequence: int, encoded: Encoded, terms: Terms) -> None:
        channel = attachment.channel
        pending.sequence = sequence
        # Before it is published: an interrupt between the two must not lose a reply.
        attachment.in_flight[sequence] = pending
        channel.requests.publish(
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
            )
        )
        channel.request_bell.ring()

    def borrow(self, example: Any, deadline_ns: int) -> tuple[LentSlot, Any]:
        """Lend the next request slot out, laid out for trees like `example`.

        Returns the loan, which lasts as long as somebody holds it, and the example's tree with arrays that
        are slot memory. `give_back` or `send_borrowed` ends it and makes the arrays read-only.
        """
        while True:
            with self._lock:
                step = self._claim(example, Kind.INFER)
                if step > Step.WAIT:
                    attachment, sequence = self._held[0], step
                    try:
                        tree, arrays = self._encoder.lay_out(example, attachment.channel.requests.memory(sequence))
                        loan = LentSlot(attachment, sequence, arrays)
                        self._loaned = weakref.ref(loan)
                        return loan, tree
                    except DoesNotFit as needed:
                        self._wanted.grow_requests(needed.metadata_bytes, needed.payload_bytes)
                        step = Step.GROW
            self._take(step, deadline_ns)

    def send_borrowed(self, pending: Pending, loan: LentSlot, observation: Any, terms: Terms) -> None:
        """Publish a borrowed slot; what already lies in it is not copied."""
        with self._lock:
            self.check_usable()
            if self._loaned is None or self._loaned() is not loan:
                raise ValueError("this loan has ended: borrow another")
            attachment = loan.attachment
            if attachment.closed or attachment.lost():
                raise ServiceUnavailable(
                    f"the daemon of {self.name!r} went away while the slot was on loan; nothing was sent: borrow another"
                )
            try:
                memory = attachment.channel.requests.memory(loan.sequence)
                encoded = self._encoder.encode(observation, memory, lent=True)
            except DoesNotFit as needed:
                raise RequestRejected(
                    f"the observation outgrew the slot that was lent for it ({needed}): borrow one for its new shape"
                ) from needed
            loan.end()
            self._loaned = None
            self._send(attachment, pending, loan.sequence, encoded, terms)
        self._followers.wake()

    def give_back(self, loan: LentSlot) -> None:
        """A borrowed slot was not sent."""
        loan.end()
        with self._lock:
            if self._loaned is not None and self._loaned() is loan:
                self._loaned = None
        self._followers.wake()

    def return_reply(self, sequence: int) -> None:
        """A reply that was lent out is done with."""
        with self._lock:
            for attachment in self._held:
                attachment.lent.pop(sequence, None)
        self._followers.wake()

    # Waiting: one thread at the doorbell, the others behind it

    def wait(self, pending: Pending, until_ns: int, *, spin: bool = True) -> None:
        """Until `pending` is settled; RequestTimeout at `until_ns`."""
        while not pending._settled_ns:
            self._wait_for_reply(until_ns, pending, spin=spin)
            if not pending._settled_ns and time.monotonic_ns() >= until_ns:
                if until_ns >= pending.deadline_ns:
                    self.abandon(pending)
                raise self.timeout_error(pending)

    def timeout_error(self, pending: Pending) -> RequestTimeout:
        waited_s = (time.monotonic_ns() - pending._started_ns) / 1e9
        return RequestTimeout(
            f"no reply from {self.name!r} to request {pending.number} within {waited_s:.3g} s (a late one is discarded)"
        )

    def wait_a_while(self) -> None:
        """For a thread that waits on behalf of others, and must not hold the interpreter while it does."""
        until_ns = time.monotonic_ns() + LONGEST_WAIT_NS
        if self._held:
            self._wait_for_reply(until_ns, None, spin=False)
        else:
            self.check_usable()
            self._followers.follow(until_ns)

    def look(self) -> None:
        """Collect what is there, without waiting for replies."""
        self.check_owner()
        grown = False
        with self._lock:
            for attachment in tuple(self._held):
                self._collect(attachment)
                if attachment.in_flight and attachment.lost():
                    self._lose(attachment)
                grown |= bool(attachment.carried)
        if grown:
            # Whoever only polls must get a result that did not fit, too.
            with contextlib.suppress(RingFull):  # `result` tells of the loan that is in the way
                self.make_room(time.monotonic_ns())

    def _wait_for_reply(self, until_ns: int, pending: Pending | None, *, spin: bool = True) -> None:
        """Until some reply has arrived and was collected, or a bounded while; the caller looks again."""
        me = threading.get_ident()
        try:
            with self._lock:
                if self._closed or self._forked:
                    self.check_usable()
                if (pending is not None and pending._settled_ns) or not self._held:
                    return
                waits = self._waiter in (0, me)
                if waits:
                    # Not a lock, which Ctrl-C at the wrong moment would leave locked for ever: the same thread
                    # takes this up again.
                    self._waiter = me
                    if self._left:
                        self._close_left(me)
                    attachment = self._held[0]
                    replies = attachment.channel.replies
                    answered = replies.words[replies.counter]
                    if answered != attachment.answered and self._collect(attachment):
                        return
            if not waits:
                self._followers.follow(until_ns)
                return
            self._news.wait(attachment.channel, answered, until_ns, spin)
            with self._lock:
                if not self._collect(attachment) and attachment.lost():
                    self._lose(attachment)
            if attachment.carried:
                self.make_room(until_ns)
            if self._left:
                with self._lock:
                    self._close_left(me)
        finally:
            # No call before the store: Python looks for signals at calls.
            if self._waiter == me:
                self._waiter = 0
                self._followers.wake()

    def _close_left(self, me: int) -> None:
        """By the thread that waits at the doorbell, for all, so that no other does; nor may one wait for the daemon."""
        if self._caller in (0, me):
            _close_all(self._left)

    # Collecting, under the lock

    def _collect(self, attachment: Attachment) -> bool:
        """Settle every request whose reply is there; True if there was any."""
        found = False
        replies = attachment.channel.replies
        attachment.answered = replies.words[replies.counter]  # before the looks, so that none is missed later
        for sequence in tuple(attachment.in_flight):
            head = replies.try_head(sequence)
            if head is None or sequence in attachment.carried:
                continue
            found = True
            if head.status == _GROW:
                self._wanted.grow_replies(head.metadata_bytes, head.payload_bytes)
                attachment.carried.append(sequence)
                continue
            pending = attachment.in_flight[sequence]
            if pending is None:
                self.late_replies += 1
            elif pending._settled_ns:
                pending._tell()  # an interrupt came between the two
            else:
                settle(self.name, attachment, pending, head)
                self.last = (head, pending._settled_ns - pending._started_ns)
            del attachment.in_flight[sequence]  # last: an interrupt before it must not lose the reply
        return found

    def cancel(self, pending: Pending) -> bool:
        """Ask the engine not to start it; False if it is settled or was never out."""
        if not pending._settled_ns:
            self.check_owner()
        with self._lock:
            if pending._settled_ns or not self._held:
                return False
            attachment = self._held[0]
            if attachment.in_flight.get(pending.sequence) is not pending:
                return False
            attachment.channel.requests.cancel(pending.sequence)
        return True

    def abandon(self, pending: Pending) -> None:
        """Nobody waits for this one: its slot is free again once the engine has answered it."""
        with self._lock:
            for attachment in self._held:
                if attachment.in_flight.get(pending.sequence) is pending:
                    attachment.channel.requests.cancel(pending.sequence)
                    attachment.in_flight[pending.sequence] = None
                if pending._lend:
                    attachment.lent.pop(pending.sequence, None)

    # The daemon: one thread at a time talks to it, and not under the lock, for it may be slow to answer

    def _attached(self) -> bool:
        return bool(self._held) and not self._held[0].closed

    def connect(self, deadline_ns: int) -> None:
        """Attach, unless that is done and the daemon still there; raises ServiceUnavailable after the retries."""
        attempts = 0
        while True:
            try:
                return self.try_connect(deadline_ns)
            except ServiceUnavailable:
                attempts += 1
                if not self.may_retry(attempts, deadline_ns):
                    raise
                time.sleep(self.retry_delay_s)

    def may_retry(self, attempts: int, deadline_ns: int) -> bool:
        """Whether a service that is not there is tried again, after `retry_delay_s`."""
        self.check_usable()
        return attempts <= self.max_retries and time.monotonic_ns() + self.retry_delay_s * 1e9 < deadline_ns

    def try_connect(self, deadline_ns: int) -> None:
        """As `connect`, one attempt."""
        with self._lock:
            self.check_usable()
            if self._attached() and self._held[0].lost():
                self._lose(self._held[0])
        self._call(deadline_ns, lambda: self._attach(deadline_ns))

    def _attach(self, deadline_ns: int) -> None:
        if self._attached():  # by another thread meanwhile
            attachment = self._held[0]
            if attachment.model is None:
                attachment.learn(_remaining_s(deadline_ns))
            return
        try:
            attachment = self._open(deadline_ns)
        except ObservationTooLarge:
            # What it grew to under an earlier daemon is more than this one allows.
            self._wanted = Wanted(self._wanted.slots)
            attachment = self._open(deadline_ns)
        try:
            attachment.learn(_remaining_s(deadline_ns))
            with self._lock:
                self.check_usable()
                self._encoder.allow_pickle = attachment.trusted
                self._stateful = attachment.model["stateful"] if attachment.model is not None else None
                self._last_before = self.last
                self._connecting = None
                self._left += self._held
                self._held[:] = [attachment]
        except BaseException:
            attachment.close()
            raise

    def _open(self, deadline_ns: int) -> Attachment:
        def connected(connection: VarlinkConnection) -> None:
            with self._lock:
                self.check_usable()
                self._connecting = connection

        return Attachment.open(self.name, self._directory, self._wanted, _remaining_s(deadline_ns), connected)

    def watch_model(self) -> ModelWatch:
        """The watch, which begins with what is known of the model now."""
        with self._lock:
            if self.model_watch is None:
                version = self.last[0].version if self.last is not None else None
                if version is None and self._held and self._held[0].model is not None:
                    version = int(self._held[0].model["version"], 16)
                self.model_watch = ModelWatch(version)
            return self.model_watch

    def stateful(self) -> bool | None:
        """Whether the model keeps state, by its latest reply or else its description; None if nothing is known."""
        if self.last is not None and self.last is not self._last_before:
            return bool(self.last[0].flags & Flag.STATEFUL)
        return self._stateful

    def may_ask_again(self, attempts: int, terms: Terms) -> bool:
        """Whether a request that was out when the daemon went away is sent to its successor.

        It may have been run. Without state in the policy that is harmless.
        """
        return attempts <= self.max_retries and (bool(terms.flags & Flag.REPEATABLE) or self.stateful() is False)

    def describe(self, deadline_ns: int) -> dict[str, Any]:
        """What the daemon says of itself and its model."""
        self.connect(deadline_ns)
        return self._call(deadline_ns, lambda: self._describe(deadline_ns))

    def _describe(self, deadline_ns: int) -> dict[str, Any]:
        if not self._attached():
            raise ServiceUnavailable(f"the daemon of {self.name!r} went away")
        return self._held[0].describe(_remaining_s(deadline_ns))

    def _call(self, deadline_ns: int, call: Callable[[], _T]) -> _T:
        """Run `call`, which talks to the daemon, when no other thread does."""
        me = threading.get_ident()
        try:
            while not self._claim_call(me):
                self._followers.follow(deadline_ns)
                if time.monotonic_ns() >= deadline_ns:
                    raise ServiceUnavailable(f"the daemon of {self.name!r} did not answer another thread in time")
            try:
                return call()
            except ServiceUnavailable:
                self.check_usable()  # closing the client ends a call, too
                raise
        finally:
            if self._caller == me:
                self._caller = 0
                self._followers.wake()

    def _claim_call(self, me: int) -> bool:
        with self._lock:
            if self._caller not in (0, me):
                return False
            self._caller = me
            return True

    def make_room(self, deadline_ns: int) -> bool:
        """Move to larger slots; False, and nothing has happened, while what is out lives in those that would be left.

        Raises RingFull if that is a loan of the calling thread, and ObservationTooLarge.
        """
        me = threading.get_ident()
        attachment: Attachment | None = None
        try:
            with self._lock:
                self.check_usable()
                if not self._attached():
                    return True
                if not self._may_move(self._held[0]) or not self._claim_call(me):
                    return False
                attachment = self._held[0]
                attachment.moving = True
            self._resize(attachment, deadline_ns)
            return True
        finally:
            if attachment is not None:
                attachment.moving = False
            if self._caller == me:
                self._caller = 0
                self._followers.wake()

    def _may_move(self, attachment: Attachment) -> bool:
        """Whether nothing is out but replies that wait for room: the rest lives in the generation that is left."""
        if not attachment.busy():
            return True
        if not self._collect(attachment) and attachment.lost():
            self._lose(attachment)
        me = threading.get_ident()
        if any(loan.thread == me for loan in map(attachment.lent_reply, tuple(attachment.lent)) if loan is not None):
            raise RingFull(
                f"the slots of {self.name!r} must grow, and one holds a reply that is lent out: leave its block"
            )
        return False

    def _resize(self, attachment: Attachment, deadline_ns: int) -> None:
        try:
            # After a call that was broken off nobody knows where the channel is.
            channel, carried = attachment.resize(self._wanted, max(_LEAST_RESIZE_S, _remaining_s(deadline_ns)))
        except ChannelRefused as refusal:
            with self._lock:
                self._refused(attachment, refusal)
        except ServiceUnavailable:
            with self._lock:
                self._lose(attachment)
        except BaseException:
            # Whether the daemon has moved the channel is not known: begin anew with the next request.
            with self._lock:
                self._lose(attachment)
            raise
        else:
            with self._lock:
                # Closed meanwhile: not here, for a thread may wait at the doorbell.
                self._left.append(channel if attachment.closed else attachment.move(channel, carried))

    def _refused(self, attachment: Attachment, refusal: ChannelRefused) -> None:
        self._wanted = attachment.granted.copy()  # or the next small request would ask for it again
        if not attachment.carried:
            raise refusal.error from refusal
        for sequence in attachment.carried:
            pending = attachment.in_flight.pop(sequence)
            if pending is not None:
                error = InferenceFailed(f"the result of request {number_of(sequence)} needs more room: {refusal.error}")
                pending._settle(None, error, None)
        attachment.carried = []

    def check_usable(self) -> None:
        """Raise ClientClosed or ClientForked if that is what this client is."""
        self.check_owner()
        if self._closed:
            raise ClientClosed(f"this client of {self.name!r} was closed: make a new one")

    def check_owner(self) -> None:
        """Raise ClientForked in a forked child, whose copy must touch nothing that it shares with the parent."""
        if self._forked:
            raise ClientForked("this client belongs to the parent process: make a new ShmClient after the fork")

    def _lose(self, attachment: Attachment) -> None:
        """The daemon is gone: whatever was out ends here."""
        if attachment.closed:
            return
        self._collect(attachment)  # what it answered before it went is still there
        for pending in attachment.in_flight.values():
            if pending is not None and not pending._settled_ns:
                pending._settle(None, attachment.lost_error(), None)
        attachment.in_flight.clear()
        attachment.hang_up()
        self._left.append(attachment)
        if attachment in self._held:
            self._held.remove(attachment)
        self._followers.wake()

    def close(self) -> None:
        """Give the channel back; requests that are out end with ClientClosed. May be called twice."""
        self._closed = True
        if self._forked:
            return
        me = threading.get_ident()
        while True:
            with self._lock:
                for attachment in self._held:
                    attachment.hang_up()
                    for pending in attachment.in_flight.values():
                        if pending is not None and not pending._settled_ns:
                            pending._settle(None, ClientClosed(f"this client of {self.name!r} was closed"), None)
                if self._connecting is not None:
                    end_calls(self._connecting)
                # A doorbell must not be closed under a thread that waits at it (glibc crashes), nor a connection:
                # a thread leaves the one within one wait, the other at once.
                if self._waiter in (0, me) and self._caller in (0, me):
                    _close_all(self._held, self._left)
                    break
            self._followers.follow(time.monotonic_ns() + LONGEST_WAIT_NS)
        self._followers.wake()

    def after_fork_in_child(self) -> None:
        """This copy is not the channel's owner: let go of its connection, or the daemon misses the owner's end."""
        self._forked = True
        self._lock = threading.RLock()  # its holder at the moment of the fork is not here to release it
        if self._loaned is not None and (loan := self._loaned()) is not None:
            loan.end()
        for attachment in self._held:
            attachment.close_connection()
        if self._connecting is not None:
            self._connecting.close()
        # Out of reach, whatever this child does with its copies of requests and loans that are out.
        self._left += self._held
        self._held.clear()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client, and what is out or on loan from it, stays in its process: make a ShmClient in each")


def _remaining_s(deadline_ns: int) -> float:
    return max(0.001, (deadline_ns - time.monotonic_ns()) / 1e9)


def _close_all(*held: list[Any]) -> None:
    for one in held:
        while one:
            one.pop().close()
