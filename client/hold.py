"""What one client holds of its service: the attachment, what is out on it, and how both end."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any, NoReturn

from shmserve.channel import ClientChannel
from shmserve.codec import Encoder
from shmserve.directories import ServicePlace
from shmserve.errors import ClientClosed, ClientForked
from shmserve.protocol import Flag, Status
from shmserve.ring import ReplyHead
from shmserve.spin import SpinBudget
from shmserve.varlink_connection import VarlinkConnection

from .attachment import Attachment, Wanted, end_calls
from .followers import Followers
from .forks import note_owned
from .lending import LentSlot
from .model_watch import ModelWatch
from .news import LONGEST_WAIT_NS, News
from .pending import Pending
from .settling import settle
from .terms import Terms

#: A plain number, as in settling.py.
_GROW = int(Status.GROW)


class Hold:
    """The state of a client across attachments; all of it under one lock, but nothing that waits."""

    def __init__(
        self,
        name: str,
        place: ServicePlace,
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
        self._place = place
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

    def _attached(self) -> bool:
        return bool(self._held) and not self._held[0].closed

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

    def return_reply(self, sequence: int) -> None:
        """A reply that was lent out is done with."""
        with self._lock:
            for attachment in self._held:
                attachment.lent.pop(sequence, None)
        self._followers.wake()

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

    def may_ask_again(self, attempts: int, terms: Terms) -> bool:
        """Whether a request that was out when the daemon went away is sent to its successor.

        It may have been run. Without state in the policy that is harmless.
        """
        return attempts <= self.max_retries and (bool(terms.flags & Flag.REPEATABLE) or self.stateful() is False)

    # The end

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

    def _close_left(self, me: int) -> None:
        """By the thread that waits at the doorbell, for all, so that no other does; nor may one wait for the daemon."""
        if self._caller in (0, me):
            _close_all(self._left)

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


def _close_all(*held: list[Any]) -> None:
    for one in held:
        while one:
            one.pop().close()
