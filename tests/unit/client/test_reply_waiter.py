"""The reply waiter: leader, followers, lost connections and deferred replies, on a channel within this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from shmserve.channel import ClientChannel
from shmserve.client.connection import Connection
from shmserve.client.pending import Pending
from shmserve.client.reply_waiter import ReplyWaiter
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

    def try_send(self, pending: Pending, observation: Any) -> ClientChannel | None:
        if not self._eligible:
            return None
        self._ends.answer(self._ends.publish(pending, Encoder(), observation), "done")
        return self._ends.channel


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
            assert not waiter.lead(path, pending, 1)
    else:
        assert not waiter.lead(path, pending, 1)

    assert waiter.leader == (-1 if reason == "another leader" else 0)
    assert pending.sequence == 0


def test_a_led_request_that_the_native_half_does_not_complete_is_completed_by_a_wait(
    ends: ChannelEnds, user: User, waiter: ReplyWaiter
) -> None:
    pending = new_pending()

    assert waiter.lead(Path(ends, eligible=True), pending, 1)
    assert (waiter.leader, pending._completed_ns) == (0, 0)

    waiter.wait_for(pending, _FAR_NS, user)
    assert pending._result == "done"
