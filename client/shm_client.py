"""ShmClient: asks the model of a service on this host, through shared memory."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref
from types import TracebackType
from typing import Any

from shmserve.channel import ClientChannel
from shmserve.codec import DoesNotFit, Encoded, Encoder
from shmserve.directories import service_directory
from shmserve.errors import (
    ClientClosed,
    ClientForked,
    EngineLost,
    InferenceFailed,
    ProtocolMismatch,
    RequestCancelled,
    RequestRejected,
    RequestSuperseded,
    RequestTimeout,
    RingFull,
    ServiceRestarted,
    ServiceUnavailable,
    ShmServeError,
    Stale,
)
from shmserve.metadata import MetadataError
from shmserve.protocol import Flag, Kind, Status
from shmserve.ring import ReplyHead
from shmserve.spin import SpinBudget, SpinSetting

from .attachment import Attachment, Wanted
from .pending import Pending
from .reply import Reply

#: No wait is longer without a look at the connection: this is how soon a daemon's end is noticed.
_LONGEST_WAIT_NS = 50_000_000
_LOOKS_PER_CLOCK = 16
_LONGEST_TIMEOUT_S = 86_400.0

_clients: weakref.WeakSet[ShmClient] = weakref.WeakSet()


class ShmClient:
    """A robot process's client; safe to call from several threads, not across a fork.

    `timeout` (seconds) is for a whole call, retries included. A service that is not there is tried
    again `max_retries` times, `retry_delay` seconds apart. `slots` is how many requests can be out at
    a time. `spin_us` is how long to look for a reply before sleeping (microseconds, or "adaptive").

    It attaches with the first request, or with `connect`, or on entering a `with` block, and again
    when the daemon was restarted.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        runtime_dir: str | os.PathLike[str] | None = None,
        timeout: float = 10.0,
        max_retries: int = 3,
        retry_delay: float = 1.0,
        slots: int = 4,
        spin_us: SpinSetting = "adaptive",
    ) -> None:
        self._name = name
        self._directory = service_directory(name, runtime_dir)
        self._timeout_s = _checked_timeout(timeout)
        if max_retries < 0 or not 0 <= retry_delay < math.inf:
            raise ValueError(f"max_retries = {max_retries}, retry_delay = {retry_delay}: neither may be negative")
        if not 1 <= slots <= 64:
            raise ValueError(f"slots = {slots}: 1 to 64")
        self._max_retries = max_retries
        self._retry_delay_s = retry_delay
        self._wanted = Wanted(slots)
        self._encoder = Encoder()
        self._budget = SpinBudget(spin_us)
        self._lock = threading.RLock()  # everything but waiting
        self._waiter = threading.Lock()  # one thread waits at the doorbell, for all
        self._arrived = threading.Condition(threading.Lock())
        self._followers = 0
        self._held: list[Attachment] = []  # at most one; a list, so that the finalizer needs no self
        self._left: list[Attachment | ClientChannel] = []  # to be closed once no thread waits at its doorbell
        self._closed = False
        self._forked = False
        self._last: tuple[ReplyHead, int] | None = None
        #: Replies that came after their deadline and were thrown away.
        self.late_replies = 0
        weakref.finalize(self, _close_all, self._held, self._left)
        _clients.add(self)

    # The public calls

    def infer(self, observation: Any, *, timeout: float | None = None) -> Any:
        """Ask the model; returns what it returned, arrays owned and writable.

        An observation is a tree of dict, list, tuple, str, bytes, int, float, bool, None, numpy arrays
        and tensors. Raises RequestTimeout, InferenceFailed, RequestRejected (UnsupportedType,
        ObservationTooLarge), ServiceUnavailable (ServiceRestarted), EngineLost, ClientClosed.
        """
        return self._ask(Kind.INFER, observation, timeout)

    def reset(self, *, timeout: float | None = None) -> None:
        """Tell the policy that this client begins a new episode; it keeps its place among the requests."""
        self._ask(Kind.RESET, None, timeout)

    def submit(self, observation: Any, *, timeout: float | None = None, supersede: bool = False) -> Pending:
        """Send without waiting for the result; up to `slots` requests can be out.

        With `supersede`, requests of this client that have not begun are answered RequestSuperseded.
        Raises RingFull when no slot became free within the timeout.
        """
        started_ns = time.monotonic_ns()
        pending = Pending(self, started_ns, self._deadline_ns(started_ns, timeout))
        self._publish(pending, Kind.INFER, observation, Flag.SUPERSEDE if supersede else 0)
        return pending

    def connect(self, *, timeout: float | None = None) -> ShmClient:
        """Attach now rather than with the first request; returns itself."""
        with self._lock:
            self._attached(self._deadline_ns(time.monotonic_ns(), timeout))
        return self

    @property
    def metadata(self) -> dict[str, Any]:
        """The service's model: name, version, device, what it takes and gives, and its own metadata."""
        with self._lock:
            deadline_ns = self._deadline_ns(time.monotonic_ns(), None)
            model = self._attached(deadline_ns).describe(_remaining_s(deadline_ns))["model"]
        if model is None:
            raise ServiceUnavailable(f"service {self._name!r} has no model ready; shmserve-admin status tells why")
        assert isinstance(model, dict)
        return model

    @property
    def last_reply(self) -> Reply | None:
        """Timing and model version of the latest reply; None before the first."""
        return Reply.of(*self._last) if self._last is not None else None

    def close(self) -> None:
        """Give the channel back; requests that are out end with ClientClosed. May be called twice."""
        self._closed = True
        if self._forked:
            return
        # A doorbell must not be closed under a thread that waits at it (glibc crashes): it leaves within one wait.
        with self._waiter, self._lock:
            for attachment in self._held:
                for pending in attachment.in_flight.values():
                    if pending is not None:
                        pending._settle(None, ClientClosed("this client was closed"), None)
            _close_all(self._held, self._left)
        self._wake_followers()

    def __enter__(self) -> ShmClient:
        return self.connect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # One request

    def _ask(self, kind: Kind, observation: Any, timeout: float | None) -> Any:
        started_ns = time.monotonic_ns()
        deadline_ns = self._deadline_ns(started_ns, timeout)
        attempts = 0
        while True:
            pending = Pending(self, started_ns, deadline_ns)
            try:
                self._publish(pending, kind, observation, 0)
                return pending.result()
            except ServiceRestarted:
                # It went away under the request. Without state in the policy, asking its successor is harmless.
                attempts += 1
                if attempts > self._max_retries or self._stateful():
                    raise
            except BaseException:
                self._abandon(pending)  # Ctrl-C, a timeout: nobody waits for this reply any more
                raise

    def _stateful(self) -> bool:
        return self._last is not None and bool(self._last[0].flags & Flag.STATEFUL)

    def _publish(self, pending: Pending, kind: Kind, observation: Any, flags: int) -> None:
        deadline_ns = pending.deadline_ns
        while True:
            with self._lock:
                attachment = self._attached(deadline_ns)
                channel = attachment.channel
                sequence = channel.requests.counter() + 1
                if not attachment.carried and sequence - channel.requests.slots not in attachment.in_flight:
                    try:
                        encoded = self._encoder.encode(observation, channel.requests.memory(sequence))
                    except DoesNotFit as needed:
                        self._wanted.grow_requests(needed.metadata_bytes, needed.payload_bytes)
                        self._resize(attachment, deadline_ns)
                        continue
                    pending.sequence = sequence
                    # Before it is published: an interrupt between the two must not lose a reply.
                    attachment.in_flight[sequence] = pending
                    channel.requests.publish(_head(sequence, kind, flags, deadline_ns, encoded))
                    channel.request_bell.ring()
                    return
                self._collect(attachment)
                if attachment.carried:
                    self._resize(attachment, deadline_ns)
                    continue
                if sequence - channel.requests.slots not in attachment.in_flight:
                    continue
            self._wait_for_reply(deadline_ns, None)
            if time.monotonic_ns() >= deadline_ns:
                raise RingFull(
                    f"all {channel.requests.slots} slots of {self._name!r} hold requests without a reply: "
                    "collect results before sending more, or make the client with more slots"
                )

    def _wait(self, pending: Pending, until_ns: int) -> None:
        """Until `pending` is settled; RequestTimeout at `until_ns`."""
        while not pending._settled_ns:
            self._wait_for_reply(until_ns, pending)
            if not pending._settled_ns and time.monotonic_ns() >= until_ns:
                if until_ns >= pending.deadline_ns:
                    self._abandon(pending)
                waited_s = (time.monotonic_ns() - pending._started_ns) / 1e9
                raise RequestTimeout(
                    f"no reply from {self._name!r} to request {pending.sequence} within {waited_s:.3g} s "
                    "(a late one is discarded)"
                )

    def _look(self) -> None:
        with self._lock:
            for attachment in self._held:
                self._collect(attachment)
                if attachment.in_flight and attachment.lost():
                    self._lose(attachment)

    def _cancel(self, pending: Pending) -> bool:
        with self._lock:
            if pending._settled_ns or not self._held:
                return False
            attachment = self._held[0]
            if attachment.in_flight.get(pending.sequence) is not pending:
                return False
            attachment.channel.requests.cancel(pending.sequence)
        return True

    def _abandon(self, pending: Pending) -> None:
        """Nobody waits for this one: its slot is free again once the engine has answered it."""
        with self._lock:
            for attachment in self._held:
                if attachment.in_flight.get(pending.sequence) is pending:
                    attachment.channel.requests.cancel(pending.sequence)
                    attachment.in_flight[pending.sequence] = None

    # Waiting: one thread at the doorbell, the others behind it

    def _wait_for_reply(self, until_ns: int, pending: Pending | None) -> None:
        """Until some reply has arrived and was collected, or a bounded while; the caller looks again."""
        if not self._waiter.acquire(blocking=False):
            self._follow(until_ns)
            return
        try:
            with self._lock:
                self._check_usable()
                if pending is not None and pending._settled_ns:
                    return
                if not self._held:
                    return
                attachment = self._held[0]
                channel = attachment.channel
                answered = channel.replies.answered_count()
                if self._collect(attachment):
                    return
            self._await_news(attachment, answered, until_ns)
            with self._lock:
                if not self._collect(attachment) and attachment.lost():
                    self._lose(attachment)
                if attachment.carried and not attachment.closed:
                    self._resize(attachment, until_ns)
        finally:
            if self._left:
                with self._lock:
                    _close_all(self._left)
            self._waiter.release()
            self._wake_followers()

    def _await_news(self, attachment: Attachment, answered: int, until_ns: int) -> None:
        """Spin for as long as a reply is likely soon, then sleep at the doorbell."""
        replies, bell = attachment.channel.replies, attachment.channel.reply_bell
        began_ns = now_ns = time.monotonic_ns()
        words, counter = replies.segment.words, replies.segment.counter_index
        spin_until_ns = min(began_ns + self._budget.ns, until_ns)
        while now_ns < spin_until_ns:
            for _ in range(_LOOKS_PER_CLOCK):
                if words[counter] != answered:
                    self._budget.waited(time.monotonic_ns() - began_ns)
                    # The token of this reply must not wake a later wait for nothing.
                    bell.try_take()
                    return
            now_ns = time.monotonic_ns()
        if bell.wait(max(0, min(until_ns - now_ns, _LONGEST_WAIT_NS))):
            self._budget.waited(time.monotonic_ns() - began_ns)

    def _follow(self, until_ns: int) -> None:
        with self._arrived:
            self._followers += 1
            try:
                self._arrived.wait(max(0.0, min((until_ns - time.monotonic_ns()) / 1e9, 0.05)))
            finally:
                self._followers -= 1

    def _wake_followers(self) -> None:
        if self._followers:
            with self._arrived:
                self._arrived.notify_all()

    # Replies

    def _collect(self, attachment: Attachment) -> bool:
        """Settle every request whose reply is there; True if there was any. Under the lock."""
        found = False
        replies = attachment.channel.replies
        for sequence in tuple(attachment.in_flight):
            if sequence in attachment.carried:
                continue
            head = replies.try_head(sequence)
            if head is None:
                continue
            found = True
            if head.status == Status.GROW:
                self._wanted.grow_replies(head.metadata_bytes, head.payload_bytes)
                attachment.carried.append(sequence)
                continue
            pending = attachment.in_flight.pop(sequence)
            if pending is None:
                self.late_replies += 1
            else:
                self._settle(attachment, pending, head)
        return found

    def _settle(self, attachment: Attachment, pending: Pending, head: ReplyHead) -> None:
        encoded = Encoded(head.schema, head.metadata_bytes, head.payload_bytes, bool(head.flags & Flag.PICKLED))
        try:
            tree = attachment.decoder.decode(attachment.channel.replies.memory(head.sequence), encoded)
        except MetadataError as error:
            pending._settle(None, ProtocolMismatch(f"the reply of {self._name!r} cannot be read: {error}"), head)
            return
        if head.status == Status.OK:
            pending._settle(tree, None, head)
        else:
            pending._settle(None, self._error(head, tree), head)
        self._last = (head, pending._settled_ns - pending._started_ns)

    def _error(self, head: ReplyHead, tree: Any) -> ShmServeError:
        what = f"request {head.sequence} to {self._name!r}"
        kind, text = tree if isinstance(tree, tuple) and len(tree) == 2 else ("", "")
        match head.status:
            case Status.FAILED:
                return InferenceFailed(f"the model raised {kind}: {text} (the traceback is in the daemon's log)")
            case Status.REJECTED:
                return RequestRejected(f"{what} was rejected: {text}")
            case Status.EXPIRED:
                return RequestTimeout(f"{what} expired before its turn came; the model did not run")
            case Status.STALE:
                return Stale(f"{what} carried an observation that was too old when its turn came; the model did not run")
            case Status.CANCELLED:
                return RequestCancelled(f"{what} was cancelled before it ran")
            case Status.SUPERSEDED:
                return RequestSuperseded(f"{what} was replaced by a newer one before it ran")
            case Status.ENGINE_LOST:
                return EngineLost(f"{what}: {text}; another engine serves the next request")
            case Status.STOPPING:
                return ServiceUnavailable(f"{what} was not started: the daemon is stopping")
            case _:
                return ProtocolMismatch(f"{what} ended with status {head.status}, which this client does not know")

    # The attachment, under the lock

    def _check_usable(self) -> None:
        if self._forked:
            raise ClientForked("this client belongs to the parent process: make a new ShmClient after the fork")
        if self._closed:
            raise ClientClosed(f"this client of {self._name!r} was closed: make a new one")

    def _attached(self, deadline_ns: int) -> Attachment:
        self._check_usable()
        if self._held:
            if not self._held[0].closed:
                return self._held[0]
            self._held.clear()
        attempt = 0
        while True:
            try:
                attachment = Attachment.open(self._name, self._directory, self._wanted, _remaining_s(deadline_ns))
                break
            except ServiceUnavailable:
                attempt += 1
                if attempt > self._max_retries or time.monotonic_ns() + self._retry_delay_s * 1e9 >= deadline_ns:
                    raise
                time.sleep(self._retry_delay_s)
        self._encoder.allow_pickle = attachment.trusted
        self._held.append(attachment)
        return attachment

    def _resize(self, attachment: Attachment, deadline_ns: int) -> None:
        """Make room. Requests that are out finish first: they live in the generation that is left."""
        if any(
            pending is not None and sequence not in attachment.carried
            for sequence, pending in attachment.in_flight.items()
        ):
            if not self._collect(attachment):
                time.sleep(0.0002)  # rare: once, when an observation grows while others are out
            if attachment.lost():
                self._lose(attachment)
            if time.monotonic_ns() >= deadline_ns:
                raise RequestTimeout(f"requests that are out kept {self._name!r} from making room in time")
            return
        try:
            self._left.append(attachment.resize(self._wanted, _remaining_s(deadline_ns)))
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

    def _deadline_ns(self, now_ns: int, timeout: float | None) -> int:
        timeout_s = self._timeout_s if timeout is None else _checked_timeout(timeout)
        return now_ns + int(timeout_s * 1e9)

    def _after_fork_in_child(self) -> None:
        self._forked = True
        for attachment in self._held:
            attachment.close_connection()  # or the daemon would not see the parent's end


def _head(sequence: int, kind: Kind, flags: int, deadline_ns: int, encoded: Encoded) -> tuple[int, ...]:
    if encoded.pickled:
        flags |= Flag.PICKLED
    return (
        sequence,
        kind,
        flags,
        deadline_ns,
        0,
        0,
        time.monotonic_ns(),
        encoded.schema,
        encoded.metadata_bytes,
        encoded.payload_bytes,
        0,
    )


def _checked_timeout(timeout: float) -> float:
    # NaN fails both comparisons; infinity would overflow a deadline.
    if not 0 <= timeout <= _LONGEST_TIMEOUT_S:
        raise ValueError(f"timeout = {timeout!r}: 0 to {_LONGEST_TIMEOUT_S:g} seconds")
    return float(timeout)


def _remaining_s(deadline_ns: int) -> float:
    return max(0.001, (deadline_ns - time.monotonic_ns()) / 1e9)


def _close_all(*held: list[Any]) -> None:
    for one in held:
        while one:
            one.pop().close()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        with contextlib.suppress(OSError):
            client._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
