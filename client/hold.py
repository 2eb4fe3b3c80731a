"""What one client holds of its service: the attachment, what is out on it, and how both end."""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from shmserve.channel import ClientChannel
from shmserve.codec import Encoder
from shmserve.directories import ServicePlace
from shmserve.errors import ClientClosed, ClientForked, InvalidArgument, ReentrantCall, RequestCancelled
from shmserve.fence import fence
from shmserve.protocol import Flag, Status
from shmserve.ring import ReplyHead
from shmserve.spin import SpinBudget
from shmserve.varlink_connection import VarlinkConnection

from .attachment import Attachment, Wanted
from .fork_guard import note_owned
from .lending import LentSlot
from .model_watch import ModelWatch
from .news import LONGEST_WAIT_NS, News
from .parking_lot import ParkingLot
from .pending import Pending
from .reply_errors import cancelled_error
from .retry_policy import RetryPolicy
from .settling import settle
from .terms import Terms

#: A plain number, as in settling.py.
_RESIZE_REQUIRED = int(Status.RESIZE_REQUIRED)
#: `close` waits so long for other threads to leave the channel, and lets a thread of its own wait longer.
_CLOSE_NS = 250_000_000
_TAKEN_S = 0.0001


class Hold:
    """The state of a client across attachments; all of it under one lock, but nothing that waits."""

    def __init__(
        self,
        name: str,
        place: ServicePlace,
        wanted: Wanted,
        budget: SpinBudget,
        retry: RetryPolicy,
        *,
        check_contract: bool = True,
    ) -> None:
        self.name = name
        #: Of calls that bring none of their own.
        self.retry = retry
        #: The head of the latest reply, and the request's round trip (ns).
        self.last: tuple[ReplyHead, int] | None = None
        #: Replies that came after their deadline and were thrown away.
        self.late_replies = 0
        #: Who wants to know when another model version answers; asked by `Pending.result`, outside the lock.
        self.model_watch: ModelWatch | None = None
        self._place = place
        self._wanted = wanted
        self._news = News(budget)
        self._encoder = Encoder()
        self._renew_lock()
        self._waiter = 0  # the thread that waits at the doorbell, for all; 0 for none
        self._parking_lot = ParkingLot()  # the threads behind it, or behind the one that talks to the daemon
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

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()
        #: Whether this thread holds the lock: then a signal handler, a finalizer or an object of the observation has
        #: interrupted a call of the client, whose steps must not be mixed with those of another call.
        self._is_inside: Callable[[], bool] = self._lock._is_owned  # type: ignore[attr-defined]

    def _usable(self) -> Attachment | None:
        """The attachment that is held, if the daemon has not left it; another thread may lose it at any time."""
        held = tuple(self._held)
        return held[0] if held and not held[0].closed else None

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
            if head.status == _RESIZE_REQUIRED:
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
        """Withdraw a request that no engine has taken; False, and nothing changes, if one has, or if it has ended."""
        if not pending._settled_ns:
            self.check_owner()
        interrupts = self._is_inside()
        with self._lock:
            attachment = self._held[0] if self._held else None
            if attachment is not None and not (pending._settled_ns or interrupts or self._closed):
                self._collect(attachment)
                if attachment.lost():
                    self._lose(attachment)
            if pending._settled_ns:
                return type(pending._error) is RequestCancelled  # by an earlier call
            if attachment is None or self._closed or attachment.in_flight.get(pending.sequence) is not pending:
                return False
            channel, sequence = attachment.channel, pending.sequence
            if channel.replies.taken(sequence):
                return False
            channel.requests.cancel(sequence)
            # ORDER: the withdrawal before the look. An engine that looked for it just before takes the request now.
            fence()
            time.sleep(_TAKEN_S)
            if channel.replies.taken(sequence):
                channel.requests.keep(sequence)
                return False
            # Its slot is free again once the engine has answered it.
            pending._settle(None, cancelled_error(self.name, sequence), None)
        self._parking_lot.unpark_all()
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

    def return_reply(self, sequence: int) -> None:
        """A reply that was lent out is done with."""
        with self._lock:
            for attachment in self._held:
                attachment.lent.pop(sequence, None)
        self._parking_lot.unpark_all()

    # The model behind it

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

    def may_ask_again(self, attempts: int, terms: Terms, retry: RetryPolicy) -> bool:
        """Whether a request that was out when the daemon went away is sent to its successor.

        It may have been run. Without state in the policy that is harmless.
        """
        return attempts <= retry.max_retries and (bool(terms.flags & Flag.REPEATABLE) or self.stateful() is False)

    # The end

    @property
    def closed(self) -> bool:
        """Whether every request has ended, or does at the next look."""
        return self._closed

    def check_usable(self) -> None:
        """Raise ClientClosed or ClientForked if that is what this client is."""
        self.check_owner()
        if self._closed:
            raise self._closed_error()

    def check_not_inside(self) -> None:
        """Raise ReentrantCall where this thread was interrupted inside the client."""
        if self._is_inside():
            raise self.reentrant_error()

    def reentrant_error(self) -> ReentrantCall:
        """For a call out of a signal handler, a finalizer or an object of the observation."""
        return ReentrantCall(
            f"this thread is inside a call of its client of {self.name!r}, which a signal handler, a finalizer or an "
            "object of the observation has interrupted: only close() and cancel() may be called there; use another "
            "client, or note what is to be done and do it after the call"
        )

    def _closed_error(self) -> ClientClosed:
        return ClientClosed(f"this client of {self.name!r} was closed: make a new one")

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
        self._parking_lot.unpark_all()

    def _close_left(self) -> None:
        """By the thread that waits at the doorbell, for all, so that no other does; nor may one wait for the daemon."""
        if not self._caller:
            _close_all(self._left)

    def close(self) -> None:
        """Give the channel back; requests that are out end with ClientClosed. May be called twice.

        It may be called wherever a signal handler or a finalizer may: it waits for nothing that its own thread keeps
        from happening, and for other threads only a moment. What they still use is closed by a thread of its own then.
        """
        self._closed = True
        if self._forked or self._end(time.monotonic_ns() + _CLOSE_NS):
            return
        # Not threading.Thread, whose start takes locks that the interrupted call may hold.
        with contextlib.suppress(RuntimeError):  # no thread is to be had: then the end of the process closes it
            _thread.start_new_thread(self._end, (None,))

    def _end(self, until_ns: int | None) -> bool:
        """End requests and close the channel; False if a call is in the way that cannot end now, or not in time."""
        me = threading.get_ident()
        while True:
            inside = self._is_inside()
            blocked = inside
            try:
                if inside or self._lock.acquire(timeout=LONGEST_WAIT_NS / 1e9):
                    self._end_in_flight()
                    # A doorbell must not be closed under a thread that waits at it (glibc crashes), nor a connection:
                    # a thread leaves the one within one wait, the other at once.
                    if not inside and not self._waiter and not self._caller:
                        _close_all(self._held, self._left)
                        return True
                    blocked = inside or me in (self._waiter, self._caller)
            finally:
                if not inside:
                    # No call before it: Python looks for signals at calls.
                    try:  # noqa: SIM105
                        self._lock.release()
                    except RuntimeError:  # another thread has it
                        pass
                self._parking_lot.unpark_all()
            if blocked or (until_ns is not None and time.monotonic_ns() >= until_ns):
                return False
            self._parking_lot.park(time.monotonic_ns() + LONGEST_WAIT_NS)

    def _end_in_flight(self) -> None:
        for attachment in tuple(self._held):
            attachment.hang_up()
            for pending in tuple(attachment.in_flight.values()):
                if pending is not None and not pending._settled_ns:
                    pending._settle(None, self._closed_error(), None)
        if self._connecting is not None:
            self._connecting.shut_down()

    def after_fork_in_child(self) -> None:
        """This copy is not the channel's owner: let go of its connection, or the daemon misses the owner's end."""
        self._forked = True
        self._renew_lock()  # its holder at the moment of the fork is not here to release it
        if self.model_watch is not None:
            self.model_watch.renew_lock()
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
        raise InvalidArgument(
            "a client, and what is out or on loan from it, stays in its process: make a ShmClient in each"
        )


def _close_all(*held: list[Any]) -> None:
    for one in held:
        while one:
            with contextlib.suppress(OSError):  # somebody has closed its descriptors
                one[-1].close()
            one.pop()  # last: after an interrupt it is closed again
