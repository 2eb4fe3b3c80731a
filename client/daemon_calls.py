"""What a client asks its daemon: for a channel, for a larger one, for what it serves.

One thread at a time talks to the daemon, and not under the lock, for it may be slow to answer.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from shmserve.errors import (
    ClientEvicted,
    InferenceFailed,
    ObservationTooLarge,
    ServiceUnavailable,
    ShmServeError,
    SlotsExhausted,
)
from shmserve.layout import number_of
from shmserve.varlink_connection import VarlinkConnection

from .attachment import Attachment, ChannelRefused, Wanted
from .hold import Hold
from .retry_policy import RetryPolicy

#: A resize that has begun is given so long, however little time its request has left.
_LEAST_RESIZE_S = 1.0
#: States in which the daemon answers no request, whatever model it had.
_WITHOUT_MODEL = ("starting", "warming", "failed", "draining")

_T = TypeVar("_T")


class DaemonCalls(Hold):
    """Gets and keeps the attachment that it holds."""

    def connect(self, deadline_ns: int, retry: RetryPolicy | None = None) -> None:
        """Attach, unless that is done and the daemon still there; raises ServiceUnavailable after the retries."""
        retry = retry or self.retry
        attempts = 0
        while True:
            try:
                return self.try_connect(deadline_ns)
            except ServiceUnavailable as error:
                attempts += 1
                if not self.may_retry(error, attempts, deadline_ns, retry):
                    raise
                self.pause(retry)

    def pause(self, retry: RetryPolicy) -> None:
        """Wait before the next attempt; closing the client ends the wait."""
        until_ns = time.monotonic_ns() + int(retry.delay_s * 1e9)
        while time.monotonic_ns() < until_ns:
            self.check_usable()
            self._parking_lot.park(until_ns)

    def may_retry(self, error: ServiceUnavailable, attempts: int, deadline_ns: int, retry: RetryPolicy) -> bool:
        """Whether a service that is not there is tried again, after the policy's delay.

        Not one that has sent this process away: it said why, and who does the same again is kept out for longer.
        """
        self.check_usable()
        if isinstance(error, ClientEvicted):
            return False
        return attempts <= retry.max_retries and time.monotonic_ns() + retry.delay_s * 1e9 < deadline_ns

    def try_connect(self, deadline_ns: int) -> None:
        """As `connect`, one attempt."""
        self.check_not_inside()
        with self._lock:
            self.check_usable()
            attachment = self._usable()
            if attachment is not None and attachment.lost():
                self._lose(attachment)
        self._call(deadline_ns, lambda: self._attach(deadline_ns))

    def _attach(self, deadline_ns: int) -> None:
        held = self._usable()
        if held is not None:  # by another thread meanwhile
            if held.model is None:
                held.learn(_remaining_s(deadline_ns))
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

        return Attachment.open(self.name, self._place, self._wanted, _remaining_s(deadline_ns), connected)

    def describe(self, deadline_ns: int) -> dict[str, Any]:
        """What the daemon says of itself and its model."""
        self.connect(deadline_ns)
        return self._call(deadline_ns, lambda: self._describe(deadline_ns))

    def _describe(self, deadline_ns: int) -> dict[str, Any]:
        attachment = self._usable()
        if attachment is None:
            raise ServiceUnavailable(f"the daemon of {self.name!r} went away")
        return attachment.describe(_remaining_s(deadline_ns))

    def reason_without_model(self, limit_ns: int) -> str:
        """Why no reply comes, if the service has no model ready; asks the daemon for `limit_ns`, if nobody else does."""
        attachment = self._usable()
        if attachment is None:
            return ""
        found = self._state_of(attachment, limit_ns) or {"state": "loading", "model": attachment.model}
        if found["model"] is not None and found["state"] not in _WITHOUT_MODEL:
            return ""
        if found["state"] in ("failed", "draining"):
            return f"the service is {found['state']}, shmserve-admin status tells why"
        return f"the service is loading its model (state {found['state']!r}), shmserve-admin wait-ready waits for it"

    def _state_of(self, attachment: Attachment, limit_ns: int) -> dict[str, Any] | None:
        """What the daemon says of itself, if it does within `limit_ns`.

        A thread asks: Ctrl-C in the middle of a call closes the connection, and requests of other threads end with it.
        """
        if self._caller or self._is_inside():
            return None
        deadline_ns = time.monotonic_ns() + limit_ns
        answers: list[dict[str, Any] | None] = []

        def ask() -> None:
            answer = None
            try:
                with contextlib.suppress(ShmServeError):
                    answer = self._call(deadline_ns, lambda: attachment.describe(_remaining_s(deadline_ns)))
            finally:
                answers.append(answer)
                self._parking_lot.unpark_all()

        with contextlib.suppress(RuntimeError):  # no thread is to be had
            _thread.start_new_thread(ask, ())
            while not answers and time.monotonic_ns() < deadline_ns:
                self._parking_lot.park(deadline_ns)
        return answers[0] if answers else None

    def _call(self, deadline_ns: int, call: Callable[[], _T]) -> _T:
        """Run `call`, which talks to the daemon, when no other thread does."""
        me = threading.get_ident()
        self.check_not_inside()
        if self._caller == me:
            raise self.reentrant_error()  # the connection is in the middle of another call
        try:
            while not self._claim_call(me):
                self._parking_lot.park(deadline_ns)
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
                self._parking_lot.unpark_all()

    def _claim_call(self, me: int) -> bool:
        with self._lock:
            if self._caller:
                return False
            self._caller = me
            return True

    def make_room(self, deadline_ns: int) -> bool:
        """Move to larger slots; False, and nothing has happened, while what is out lives in those that would be left.

        Raises SlotsExhausted if that is a loan of the calling thread, and ObservationTooLarge.
        """
        me = threading.get_ident()
        interrupts = self._caller == me  # another call of this thread, by a signal handler or a finalizer
        attachment: Attachment | None = None
        try:
            with self._lock:
                self.check_usable()
                held = self._usable()
                if held is None:
                    return True
                if interrupts:
                    raise self.reentrant_error()
                if not self._may_move(held) or not self._claim_call(me):
                    return False
                attachment = held
                attachment.moving = True
            self._resize(attachment, deadline_ns)
            return True
        finally:
            if attachment is not None:
                attachment.moving = False
            if self._caller == me and not interrupts:
                self._caller = 0
                self._parking_lot.unpark_all()

    def _may_move(self, attachment: Attachment) -> bool:
        """Whether nothing is out but replies that wait for room: the rest lives in the generation that is left."""
        if not attachment.busy():
            return True
        if not self._collect(attachment) and attachment.lost():
            self._lose(attachment)
        me = threading.get_ident()
        if any(loan.thread == me for loan in map(attachment.lent_reply, tuple(attachment.lent)) if loan is not None):
            raise SlotsExhausted(
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


def _remaining_s(deadline_ns: int) -> float:
    return max(0.001, (deadline_ns - time.monotonic_ns()) / 1e9)
