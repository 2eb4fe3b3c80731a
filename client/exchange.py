"""The requests that are out: published, waited for, collected. All of it under one lock but the waiting."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shmserve.channel import ClientChannel
from shmserve.codec import DoesNotFit, Encoded, Encoder, LeafReader, SlotMemory, owned_array
from shmserve.errors import (
    ClientClosed,
    ClientForked,
    InferenceFailed,
    ObservationTooLarge,
    ProtocolMismatch,
    RequestTimeout,
    RingFull,
    ServiceUnavailable,
)
from shmserve.metadata import MetadataError
from shmserve.protocol import Flag, Kind, Status
from shmserve.ring import ReplyHead
from shmserve.schema import BFLOAT16, Array, ArrayPlace
from shmserve.spin import SpinBudget

from .attachment import Attachment, ChannelRefused, Wanted
from .contract_check import check_observation
from .pending import Pending
from .reply_errors import reply_error

#: No wait is longer without a look at the connection: this is how soon a daemon's end is noticed.
_LONGEST_WAIT_NS = 50_000_000
_LOOKS_PER_CLOCK = 16
#: A resize that has begun is given so long, however little time its request has left.
_LEAST_RESIZE_S = 1.0


class Terms(NamedTuple):
    """How a request is to be treated; times are CLOCK_MONOTONIC nanoseconds, 0 for none."""

    kind: Kind = Kind.INFER
    flags: int = 0
    capture_ns: int = 0
    max_age_ns: int = 0


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
        self._directory = directory
        self._wanted = wanted
        self._budget = budget
        self._encoder = Encoder()
        self._lock = threading.RLock()
        self._waiter = 0  # the thread that waits at the doorbell, for all; 0 for none
        self._followers: list[threading.Lock] = []  # of the threads behind it; one that is released wakes its thread
        self._held: list[Attachment] = []  # at most one; a list, so that the finalizer needs no self
        self._left: list[Attachment | ClientChannel] = []  # to be closed once no thread waits at its doorbell
        self._check_contract = check_contract
        self._checked: Attachment | None = None  # the one whose model has seen what this client sends
        self._loaned: tuple[int, int] | None = None  # (thread, sequence) of the request slot that is lent out
        self._closed = False
        self._forked = False
        weakref.finalize(self, _close_all, self._held, self._left)

    # Publishing

    def publish(self, pending: Pending, observation: Any, terms: Terms = _PLAIN) -> None:
        """Encode into the next slot and make it visible; waits for a free slot until the deadline.

        Raises RingFull, RequestTimeout, ServiceUnavailable, and what the codec refuses.
        """
        while True:
            if not self._attached():
                self.connect(pending.deadline_ns)
            with self._lock:
                attachment = self._free_slot(pending.deadline_ns)
                if attachment is not None:
                    if attachment is not self._checked and terms.kind == Kind.INFER:
                        self._check(attachment, observation, pending.deadline_ns)
                    channel = attachment.channel
                    sequence = channel.requests.counter() + 1
                    try:
                        encoded = self._encoder.encode(observation, channel.requests.memory(sequence))
                    except DoesNotFit as needed:
                        self._wanted.grow_requests(needed.metadata_bytes, needed.payload_bytes)
                        self._resize(attachment, pending.deadline_ns)
                        continue
                    self._send(attachment, pending, sequence, encoded, terms)
                    return
            self._wait_for_slot(pending.deadline_ns)

    def try_publish(self, pending: Pending, observation: Any, terms: Terms = _PLAIN) -> bool:
        """As `publish`, if that needs no waiting at all; else False and nothing has happened."""
        with self._lock:
            if not self._attached() or self._free_slot(0) is None:
                return False
            if self._held[0] is not self._checked:
                return False  # the comparison with the model's contract asks the daemon
            channel = self._held[0].channel
            sequence = channel.requests.counter() + 1
            try:
                encoded = self._encoder.encode(observation, channel.requests.memory(sequence))
            except DoesNotFit:
                return False
            self._send(self._held[0], pending, sequence, encoded, terms)
            return True

    def _check(self, attachment: Attachment, observation: Any, deadline_ns: int) -> None:
        """Compare the first observation of an attachment with the model's contract; once there is a model."""
        if self._check_contract:
            model = attachment.describe(_remaining_s(deadline_ns))["model"]
            if model is None:
                return
            check_observation(self.name, model, observation)
        self._checked = attachment

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

    def _free_slot(self, deadline_ns: int) -> Attachment | None:
        """The attachment whose next slot may be written; None while the slot is still in use, or without one."""
        self._check_usable()
        if not self._attached():
            return None
        attachment = self._held[0]
        requests = attachment.channel.requests
        if self._loaned is not None:
            if self._loaned[0] == threading.get_ident():
                raise RingFull("a request slot is lent out: send() it, or leave its block, before the next request")
            return None
        before = requests.counter() + 1 - requests.slots
        if not attachment.carried and before not in attachment.in_flight:
            if before in attachment.lent:
                raise RingFull(
                    f"the next slot of {self.name!r} holds a reply that is lent out: leave its block first, or make "
                    "the client with more slots"
                )
            return attachment
        self._collect(attachment)
        if attachment.carried and deadline_ns:
            self._resize(attachment, deadline_ns)
        return None

    def _wait_for_slot(self, deadline_ns: int) -> None:
        if self._loaned is not None:
            time.sleep(0.0002)  # rare: another thread fills the slot that it has on loan
        else:
            self._wait_for_reply(deadline_ns, None)
        if time.monotonic_ns() >= deadline_ns:
            raise RingFull(
                f"every slot of {self.name!r} holds a request without a reply: collect results before sending more, "
                "or make the client with more slots"
            )

    def borrow(self, example: Any, deadline_ns: int) -> tuple[int, list[Array], Any]:
        """Lend the next request slot out, laid out for trees like `example`.

        Returns the sequence, and the example's tree with arrays that are slot memory. `give_back` or
        `send_borrowed` ends it.
        """
        while True:
            if not self._attached():
                self.connect(deadline_ns)
            with self._lock:
                attachment = self._free_slot(deadline_ns)
                if attachment is not None:
                    if attachment is not self._checked:
                        self._check(attachment, example, deadline_ns)
                    sequence = attachment.channel.requests.counter() + 1
                    memory = attachment.channel.requests.memory(sequence)
                    try:
                        views, tree = self._encoder.lay_out(example, memory)
                    except DoesNotFit as needed:
                        self._wanted.grow_requests(needed.metadata_bytes, needed.payload_bytes)
                        self._resize(attachment, deadline_ns)
                        continue
                    self._loaned = threading.get_ident(), sequence
                    return sequence, views, tree
            self._wait_for_slot(deadline_ns)

    def send_borrowed(self, pending: Pending, sequence: int, observation: Any, terms: Terms) -> None:
        """Publish a borrowed slot; what already lies in it is not copied."""
        with self._lock:
            attachment = self._held[0] if self._held else None
            if attachment is None or attachment.closed or attachment.channel.requests.counter() + 1 != sequence:
                raise ServiceUnavailable(f"the daemon of {self.name!r} went away while the slot was on loan")
            try:
                encoded = self._encoder.encode(observation, attachment.channel.requests.memory(sequence))
            except DoesNotFit as needed:
                raise RingFull(
                    f"the observation outgrew the slot that was lent for it ({needed}): borrow one for its new shape"
                ) from needed
            self._loaned = None
            self._send(attachment, pending, sequence, encoded, terms)

    def give_back(self, sequence: int) -> None:
        """A borrowed slot was not sent."""
        with self._lock:
            if self._loaned is not None and self._loaned[1] == sequence:
                self._loaned = None

    def return_reply(self, sequence: int) -> None:
        """A reply that was lent out is done with."""
        with self._lock:
            for attachment in self._held:
                attachment.lent.discard(sequence)

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
            f"no reply from {self.name!r} to request {pending.sequence} within {waited_s:.3g} s "
            "(a late one is discarded)"
        )

    def wait_a_while(self) -> None:
        """For a thread that waits on behalf of others, and must not hold the interpreter while it does."""
        self._wait_for_reply(time.monotonic_ns() + _LONGEST_WAIT_NS, None, spin=False)

    def look(self) -> None:
        """Collect what is there, without waiting for replies."""
        with self._lock:
            for attachment in tuple(self._held):
                self._collect(attachment)
                if attachment.in_flight and attachment.lost():
                    self._lose(attachment)
                elif attachment.carried and not attachment.busy():
                    # Whoever only polls must get a result that did not fit, too.
                    self._resize(attachment, time.monotonic_ns())

    def _wait_for_reply(self, until_ns: int, pending: Pending | None, *, spin: bool = True) -> None:
        """Until some reply has arrived and was collected, or a bounded while; the caller looks again."""
        me = threading.get_ident()
        try:
            with self._lock:
                self._check_usable()
                if (pending is not None and pending._settled_ns) or not self._held:
                    return
                waits = self._waiter in (0, me)
                if waits:
                    # Not a lock, which Ctrl-C at the wrong moment would leave locked for ever: the same thread
                    # takes this up again.
                    self._waiter = me
                    if self._left:
                        _close_all(self._left)
                    attachment = self._held[0]
                    answered = attachment.channel.replies.answered_count()
                    if self._collect(attachment):
                        return
            if not waits:
                self._follow(until_ns)
                return
            self._await_news(attachment.channel, answered, until_ns, spin)
            with self._lock:
                if not self._collect(attachment) and attachment.lost():
                    self._lose(attachment)
                if attachment.carried and not attachment.closed:
                    self._resize(attachment, until_ns)
                if self._left:
                    _close_all(self._left)
        finally:
            # No call before the store: Python looks for signals at calls.
            if self._waiter == me:
                self._waiter = 0
                self._wake_followers()

    def _await_news(self, channel: ClientChannel, answered: int, until_ns: int, spin: bool) -> None:
        """Spin for as long as a reply is likely soon, then sleep at the doorbell."""
        bell = channel.reply_bell
        began_ns = now_ns = time.monotonic_ns()
        if spin:
            words, counter = channel.replies.segment.words, channel.replies.segment.counter_index
            spin_until_ns = min(began_ns + self._budget.ns, until_ns)
            crowded = threading.active_count() > 1
            while now_ns < spin_until_ns:
                for _ in range(_LOOKS_PER_CLOCK):
                    if words[counter] != answered:
                        self._budget.waited(time.monotonic_ns() - began_ns)
                        # The token of this reply must not wake a later wait for nothing.
                        bell.try_take()
                        return
                if crowded:
                    time.sleep(0)  # the interpreter lock is this thread's for 5 ms otherwise
                now_ns = time.monotonic_ns()
        if bell.wait(max(0, min(until_ns - now_ns, _LONGEST_WAIT_NS))):
            self._budget.waited(time.monotonic_ns() - began_ns)

    def _follow(self, until_ns: int) -> None:
        # A lock rather than a condition: a condition that Ctrl-C interrupts raises something else.
        alarm = threading.Lock()
        alarm.acquire()
        self._followers.append(alarm)
        alarm.acquire(timeout=max(0.0, min((until_ns - time.monotonic_ns()) / 1e9, 0.05)))

    def _wake_followers(self) -> None:
        while self._followers:
            with contextlib.suppress(IndexError):  # another thread wakes them, too
                self._followers.pop().release()

    # Collecting, under the lock

    def _collect(self, attachment: Attachment) -> bool:
        """Settle every request whose reply is there; True if there was any."""
        found = False
        replies = attachment.channel.replies
        for sequence in tuple(attachment.in_flight):
            head = replies.try_head(sequence)
            if head is None or sequence in attachment.carried:
                continue
            found = True
            if head.status == Status.GROW:
                self._wanted.grow_replies(head.metadata_bytes, head.payload_bytes)
                attachment.carried.append(sequence)
                continue
            pending = attachment.in_flight[sequence]
            if pending is None:
                self.late_replies += 1
            else:
                self._settle(attachment, pending, head)
            del attachment.in_flight[sequence]  # last: an interrupt before it must not lose the reply
        return found

    def _settle(self, attachment: Attachment, pending: Pending, head: ReplyHead) -> None:
        encoded = Encoded(head.schema, head.metadata_bytes, head.payload_bytes, bool(head.flags & Flag.PICKLED))
        memory = attachment.channel.replies.memory(head.sequence)
        read_leaf: LeafReader = owned_array
        loan: _LentMemory | None = None
        if pending._lend and head.status == Status.OK and not encoded.pickled:
            loan = _LentMemory(memory)
            read_leaf = loan.read_leaf
        try:
            tree = attachment.decoder.decode(memory, encoded, read_leaf)
        except MetadataError as error:
            pending._settle(None, ProtocolMismatch(f"the reply of {self.name!r} cannot be read: {error}"), head)
            return
        except Exception as error:  # noqa: BLE001  unpickling runs the code of the object's own type
            why = f"{type(error).__name__}: {error}"
            text = f"the model returned an object that this process cannot unpickle: {why}"
            pending._settle(None, InferenceFailed(text), head)
            return
        if pending._lend and head.status == Status.OK:
            if loan is not None and isinstance(tree, (dict, list)):
                attachment.lent.add(head.sequence)
            else:
                # The caller's variable outlives the block, and only a dict or a list can be emptied under it.
                tree, loan = attachment.decoder.decode(memory, encoded, owned_array), None
            tree = (tree, loan)
        if head.status == Status.OK:
            pending._settle(tree, None, head)
        else:
            pending._settle(None, reply_error(self.name, head, tree), head)
        self.last = (head, pending._settled_ns - pending._started_ns)

    def cancel(self, pending: Pending) -> bool:
        """Ask the engine not to start it; False if it is settled or was never out."""
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
                    attachment.lent.discard(pending.sequence)

    # The attachment, under the lock

    def _attached(self) -> bool:
        return bool(self._held) and not self._held[0].closed

    def connect(self, deadline_ns: int) -> None:
        """Attach, unless that is done and the daemon still there; raises ServiceUnavailable after the retries."""
        attempt = 0
        while True:
            try:
                with self._lock:
                    self._check_usable()
                    if self._attached() and self._held[0].lost():
                        self._lose(self._held[0])
                    if not self._attached():
                        self._attach(deadline_ns)
                    return
            except ServiceUnavailable:
                attempt += 1
                if attempt > self.max_retries or time.monotonic_ns() + self.retry_delay_s * 1e9 >= deadline_ns:
                    raise
                time.sleep(self.retry_delay_s)  # without the lock: other threads have timeouts of their own

    def _attach(self, deadline_ns: int) -> None:
        try:
            attachment = Attachment.open(self.name, self._directory, self._wanted, _remaining_s(deadline_ns))
        except ObservationTooLarge:
            # What it grew to under an earlier daemon is more than this one allows.
            self._wanted = Wanted(self._wanted.slots)
            attachment = Attachment.open(self.name, self._directory, self._wanted, _remaining_s(deadline_ns))
        self._encoder.allow_pickle = attachment.trusted
        self._held.append(attachment)

    def describe(self, deadline_ns: int) -> dict[str, Any]:
        """What the daemon says of itself and its model."""
        self.connect(deadline_ns)
        with self._lock:
            self._check_usable()
            if not self._attached():
                raise ServiceUnavailable(f"the daemon of {self.name!r} went away")
            return self._held[0].describe(_remaining_s(deadline_ns))

    def _check_usable(self) -> None:
        if self._forked:
            raise ClientForked("this client belongs to the parent process: make a new ShmClient after the fork")
        if self._closed:
            raise ClientClosed(f"this client of {self.name!r} was closed: make a new one")

    def _resize(self, attachment: Attachment, deadline_ns: int) -> None:
        """Make room. Requests that are out finish first: they live in the generation that is left."""
        if attachment.busy():
            if not self._collect(attachment):
                time.sleep(0.0002)  # rare: once, when an observation grows while others are out
            if attachment.lost():
                self._lose(attachment)
            if time.monotonic_ns() >= deadline_ns:
                raise RequestTimeout(f"requests or loans that are out kept {self.name!r} from making room in time")
            return
        try:
            # After a call that was broken off nobody knows where the channel is.
            self._left.append(attachment.resize(self._wanted, max(_LEAST_RESIZE_S, _remaining_s(deadline_ns))))
        except ChannelRefused as refusal:
            self._wanted = attachment.granted.copy()  # or the next small request would ask for it again
            if not attachment.carried:
                raise refusal.error from refusal
            for sequence in attachment.carried:
                pending = attachment.in_flight.pop(sequence)
                if pending is not None:
                    error = InferenceFailed(f"the result of request {sequence} needs more room: {refusal.error}")
                    pending._settle(None, error, None)
            attachment.carried = []
        except ServiceUnavailable:
            self._lose(attachment)
        except BaseException:
            # Whether the daemon has moved the channel is not known: begin anew with the next request.
            self._lose(attachment)
            raise

    def _lose(self, attachment: Attachment) -> None:
        """The daemon is gone: whatever was out ends here."""
        if attachment.closed:
            return
        self._collect(attachment)  # what it answered before it went is still there
        for pending in attachment.in_flight.values():
            if pending is not None:
                pending._settle(None, attachment.lost_error(), None)
        attachment.in_flight.clear()
        attachment.hang_up()
        self._left.append(attachment)
        if attachment in self._held:
            self._held.remove(attachment)

    def close(self) -> None:
        """Give the channel back; requests that are out end with ClientClosed. May be called twice."""
        self._closed = True
        if self._forked:
            return
        me = threading.get_ident()
        while True:
            with self._lock:
                # A doorbell must not be closed under a thread that waits at it (glibc crashes): it leaves within one wait.
                if self._waiter in (0, me):
                    for attachment in self._held:
                        for pending in attachment.in_flight.values():
                            if pending is not None:
                                pending._settle(None, ClientClosed(f"this client of {self.name!r} was closed"), None)
                    _close_all(self._held, self._left)
                    break
            self._follow(time.monotonic_ns() + _LONGEST_WAIT_NS)
        self._wake_followers()

    def after_fork_in_child(self) -> None:
        """This copy is not the channel's owner: let go of its connection, or the daemon misses the owner's end."""
        self._forked = True
        self._lock = threading.RLock()  # its holder at the moment of the fork is not here to release it
        for attachment in self._held:
            attachment.close_connection()


class _LentMemory:
    """The arrays of a reply that is lent out, to tell whether any outlives its block."""

    def __init__(self, memory: SlotMemory) -> None:
        self._raw = memory.raw.toreadonly()
        self._roots: list[weakref.ref[Array]] = []

    def read_leaf(self, place: ArrayPlace, view: Array) -> Any:
        if place.kind != "array" or place.dtype == BFLOAT16 or not place.size:
            return owned_array(place, view)
        # numpy hangs a view of a view on the first array of the chain, so this one lives as long as any of them.
        root = np.frombuffer(self._raw, np.uint8, place.size, place.offset)
        self._roots.append(weakref.ref(root))
        return root.view(place.stored_as).reshape(place.shape)

    def kept(self) -> bool:
        """Whether an array over the memory is still held by somebody."""
        return any(root() is not None for root in self._roots)


def _remaining_s(deadline_ns: int) -> float:
    return max(0.001, (deadline_ns - time.monotonic_ns()) / 1e9)


def _close_all(*held: list[Any]) -> None:
    for one in held:
        while one:
            one.pop().close()
