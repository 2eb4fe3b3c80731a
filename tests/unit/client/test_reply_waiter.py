"""The reply waiter: leader, followers, lost connections and deferred replies, on a channel within this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from shmserve.backend import ClientFastPath
from shmserve.client import reply_waiter
from shmserve.client.connection import Connection
from shmserve.client.fast_path import FastPath
from shmserve.client.pending import Pending
from shmserve.client.reply_waiter import ReplyWaiter
from shmserve.client.request_options import DEFAULT_OPTIONS, RequestOptions
from shmserve.codec import Encoder
from shmserve.errors import ClientClosed, SlotsExhausted
from shmserve.protocol import Status
from tests.support.channel_ends import ChannelEnds, new_pending

_FAR_NS = 1 << 62


class User:
    """Notes what the waiter reports."""

    def __init__(self, ends: ChannelEnds) -> None:
        self.ends = ends
        self.lost_connections: list[Any] = []
        self.resizes = 0
        self.refusal: SlotsExhausted | None = None

    def lost(self, connection: Connection) -> None:
        self.lost_connections.append(connection)
        self.ends.table.fail_all(connection.close_error)

    def make_room(self, deadline_ns: int) -> bool:
        self.resizes += 1
        self.ends.table.deferred = []
        if self.refusal is not None:
            raise self.refusal
        return True


class Path:
    """Stands in for the fast path: declines, or sends by the slow path's steps and has no reply."""

    native = None

    def __init__(self, ends: ChannelEnds, *, eligible: bool) -> None:
        self._ends = ends
        self._eligible = eligible
        self.leaders: list[int] = []

    def try_send(
        self, pending: Pending, observation: Any, options: RequestOptions, *, leads: bool
    ) -> ClientFastPath | None:
        assert leads
        if not self._eligible:
            return None
        self._ends.answer(self._ends.publish(pending, Encoder(), observation), "done")
        return cast(ClientFastPath, self)

    def wait(self, *arguments: Any) -> None:
        """Return nothing, as for a reply that the fast path leaves to the slow path."""

    waited_ns = 0


@pytest.fixture
def ends() -> Iterator[ChannelEnds]:
    with ChannelEnds() as ends:
        yield ends


@pytest.fixture
def user(ends: ChannelEnds) -> User:
    return User(ends)


@pytest.fixture
def waiter(ends: ChannelEnds) -> ReplyWaiter:
    return ReplyWaiter(ends.guard, ends.connector, ends.table, ends.lot, ends.budget)


def test_the_leader_completes_the_requests_of_every_thread(ends: ChannelEnds, user: User, waiter: ReplyWaiter) -> None:
    requests = [new_pending() for _ in range(3)]
    sequences = [ends.publish(pending, Encoder(), {"n": n}) for n, pending in enumerate(requests)]
    threads = [threading.Thread(target=waiter.wait_for, args=(pending, _FAR_NS, user)) for pending in requests]
    for thread in threads:
        thread.start()
    while not waiter.leader or not ends.lot.parked:
        time.sleep(0.001)
    assert waiter.leader in [thread.ident for thread in threads]
    for n, sequence in enumerate(sequences):
        ends.answer(sequence, n)
    for thread in threads:
        thread.join()

    assert [pending._result for pending in requests] == [0, 1, 2]
    assert waiter.leader == 0
    assert not ends.lot.parked


def test_a_wait_ends_at_its_time_and_leaves_no_leader(ends: ChannelEnds, user: User, waiter: ReplyWaiter) -> None:
    pending = new_pending()
    ends.publish(pending, Encoder(), 1)

    waiter.wait_for(pending, time.monotonic_ns() + 1_000_000, user)

    assert pending._completed_ns == 0
    assert waiter.leader == 0


@pytest.mark.parametrize("answered", [False, True])
def test_a_daemon_that_is_gone_is_reported_unless_a_reply_is_there(
    ends: ChannelEnds, user: User, waiter: ReplyWaiter, answered: bool
) -> None:
    pending = new_pending()
    sequence = ends.publish(pending, Encoder(), 1)
    ends.connection.gone = True
    if answered:
        ends.answer(sequence, 5)

    waiter.wait_for(pending, _FAR_NS, user)

    assert user.lost_connections == ([] if answered else [ends.connection])
    assert (pending._result, pending._error is None) == ((5, True) if answered else (None, False))


def defer(ends: ChannelEnds) -> Pending:
    pending = new_pending()
    ends.answer(ends.publish(pending, Encoder(), 1), None, Status.RESIZE_REQUIRED)
    return pending


def wait_once_at_the_doorbell(ends: ChannelEnds, user: User, waiter: ReplyWaiter, own: Pending | None) -> None:
    """Wait when the counter has been seen already, so that the reply is found after the doorbell."""
    replies = ends.channel.replies
    ends.table.polled_count = replies.words[replies.counter]
    waiter.wait(time.monotonic_ns() + 1_000_000, user, own)


def test_a_deferred_reply_makes_room(ends: ChannelEnds, user: User, waiter: ReplyWaiter) -> None:
    wait_once_at_the_doorbell(ends, user, waiter, defer(ends))

    assert user.resizes == 1
    assert waiter.leader == 0


@pytest.mark.parametrize("own_completed", [False, True])
def test_a_loan_in_the_way_of_a_resize_is_an_error_unless_the_own_reply_has_come(
    ends: ChannelEnds, user: User, waiter: ReplyWaiter, own_completed: bool
) -> None:
    user.refusal = SlotsExhausted("a loan is in the way")
    own = new_pending()
    sequence = ends.publish(own, Encoder(), 1)
    defer(ends)
    if own_completed:
        ends.answer(sequence, 1)
        wait_once_at_the_doorbell(ends, user, waiter, own)
        assert own._result == 1
    else:
        with pytest.raises(SlotsExhausted):
            wait_once_at_the_doorbell(ends, user, waiter, own)
    assert user.resizes == 1
    assert waiter.leader == 0


def test_the_leader_closes_retired_connections(ends: ChannelEnds, user: User, waiter: ReplyWaiter) -> None:
    closed: list[int] = []

    class Retired:
        def close(self) -> None:
            closed.append(waiter.leader)

    ends.connector.retired.append(cast(Any, Retired()))
    pending = new_pending()
    ends.answer(ends.publish(pending, Encoder(), 1), 2)
    waiter.wait_for(pending, _FAR_NS, user)

    assert closed == [threading.get_ident()]
    assert ends.connector.retired == []


def test_a_closed_client_ends_the_wait(ends: ChannelEnds, user: User, waiter: ReplyWaiter) -> None:
    pending = new_pending()
    ends.publish(pending, Encoder(), 1)
    ends.guard.close()

    with pytest.raises(ClientClosed):
        waiter.wait_for(pending, _FAR_NS, user)
    assert waiter.leader == 0


@pytest.mark.parametrize("reason", ["declined", "another leader", "inside the client"])
def test_a_request_that_may_not_lead_is_not_sent(ends: ChannelEnds, waiter: ReplyWaiter, reason: str) -> None:
    path, pending = Path(ends, eligible=reason != "declined"), new_pending()
    if reason == "another leader":
        waiter.leader = -1
    if reason == "inside the client":
        with ends.guard.lock:
            assert not waiter.lead(path, pending, 1, DEFAULT_OPTIONS)
    else:
        assert not waiter.lead(path, pending, 1, DEFAULT_OPTIONS)

    assert waiter.leader == (-1 if reason == "another leader" else 0)
    assert pending.sequence == 0


def test_a_led_request_that_the_native_half_does_not_complete_is_completed_by_a_wait(
    ends: ChannelEnds, user: User, waiter: ReplyWaiter
) -> None:
    pending = new_pending()

    assert waiter.lead(Path(ends, eligible=True), pending, 1, DEFAULT_OPTIONS)
    assert (waiter.leader, pending._completed_ns) == (0, 0)

    waiter.wait_for(pending, _FAR_NS, user)
    assert pending._result == "done"


class Both:
    """A led request and one that another thread submits meanwhile, on a real fast path."""

    def __init__(self, ends: ChannelEnds, waiter: ReplyWaiter) -> None:
        self.ends = ends
        self.encoder = Encoder()
        self.path = FastPath(ends.guard, ends.connector, ends.table, self.encoder)
        first = new_pending()
        ends.answer(ends.publish(first, self.encoder, {"n": 0}), {"n": 0})
        ends.table.poll()
        ends.channel.reply_bell.try_take()
        self.path.specialize(cast(Connection, ends.connection))
        self.led, self.submitted = new_pending(), new_pending()
        self._waiter = waiter
        self._thread = threading.Thread(target=waiter.lead, args=(self.path, self.led, {"n": 1}, DEFAULT_OPTIONS))

    def start(self) -> None:
        """Lead in a thread, and submit once it waits."""
        self._thread.start()
        while not self._waiter.leader:
            time.sleep(0.001)
        with self.ends.guard.lock:
            assert self.path.try_send(self.submitted, {"n": 2}, DEFAULT_OPTIONS, leads=False) is not None

    def join(self) -> None:
        self._thread.join()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that waits until the doorbell rings."""
    monkeypatch.setattr(reply_waiter, "LONGEST_WAIT_NS", 60_000_000_000)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("first", ["led", "submitted"])
def test_a_request_that_is_submitted_while_a_thread_leads_gets_its_own_reply(
    ends: ChannelEnds, user: User, waiter: ReplyWaiter, first: str
) -> None:
    both = Both(ends, waiter)
    both.start()
    numbers = {"led": (both.led, 10), "submitted": (both.submitted, 20)}
    order = [first, *(name for name in numbers if name != first)]
    for name in order:
        pending, number = numbers[name]
        ends.answer(pending.sequence, {"n": number})
        if name == "led" or first == "submitted":
            both.join()
    for pending in (both.led, both.submitted):
        waiter.wait_for(pending, _FAR_NS, user)

    assert (both.led._result, both.submitted._result) == ({"n": 10}, {"n": 20})
    assert [pending._head.sequence for pending in (both.led, both.submitted) if pending._head is not None] == [
        both.led.sequence,
        both.submitted.sequence,
    ]
    assert (ends.table.in_flight, waiter.leader, user.resizes) == ({}, 0, 0)


@pytest.mark.usefixtures("patient")
def test_a_follower_of_a_leader_on_the_fast_path_gets_its_reply(
    ends: ChannelEnds, user: User, waiter: ReplyWaiter
) -> None:
    both = Both(ends, waiter)
    both.start()
    follower = threading.Thread(target=waiter.wait_for, args=(both.submitted, _FAR_NS, user))
    follower.start()
    while not ends.lot.parked:
        time.sleep(0.001)
    ends.answer(both.submitted.sequence, {"n": 20})
    follower.join()
    ends.answer(both.led.sequence, {"n": 10})
    both.join()
    waiter.wait_for(both.led, _FAR_NS, user)

    assert (both.led._result, both.submitted._result) == ({"n": 10}, {"n": 20})


@pytest.mark.usefixtures("patient")
def test_a_reply_that_came_before_the_leader_sent_does_not_wait_for_the_leader(
    ends: ChannelEnds, user: User, waiter: ReplyWaiter
) -> None:
    both = Both(ends, waiter)
    early = new_pending()
    with ends.guard.lock:
        assert both.path.try_send(early, {"n": 5}, DEFAULT_OPTIONS, leads=False) is not None
    ends.answer(early.sequence, {"n": 50})
    ends.channel.reply_bell.try_take()
    both.start()
    waiter.wait_for(early, _FAR_NS, user)

    assert early._result == {"n": 50}
    assert (both.led._completed_ns, both.submitted._completed_ns) == (0, 0)
    ends.answer(both.led.sequence, {"n": 10})
    both.join()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("meanwhile", ["error", "polled"])
def test_a_led_request_that_another_thread_completes_stays_as_it_is(
    ends: ChannelEnds, user: User, waiter: ReplyWaiter, meanwhile: str
) -> None:
    both = Both(ends, waiter)
    both.start()
    with ends.guard.lock:
        if meanwhile == "error":
            ends.table.fail(both.led, ClientClosed("closed by another thread"))
        ends.answer(both.led.sequence, {"n": 10})
        ends.table.poll()
    both.join()

    assert (both.led._error is not None, both.led._result) == (
        (True, None) if meanwhile == "error" else (False, {"n": 10})
    )
