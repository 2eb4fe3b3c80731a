"""The request table: claimed slots, polled replies, loans, and the end of every request, without a daemon."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shmserve.client.capacity import SlotCapacity
from shmserve.client.loans import ReplyLoan, RequestLoan
from shmserve.client.pending import Pending
from shmserve.client.request_options import BACK_PRESSURED, DEFAULT_OPTIONS, RESIZE_REQUIRED
from shmserve.client.request_table import RequestTable
from shmserve.errors import RequestCancelled, ServiceUnavailable, ShmServeError, SlotsExhausted
from shmserve.layout import number_of, sequence_of, slot_of
from shmserve.protocol import Flag, Status
from shmserve.ring import ReplyHead


class Channel:
    """Counters and heads of a channel, as the engine would leave them."""

    def __init__(self, slots: int, rotating: int) -> None:
        self.heads: dict[int, ReplyHead] = {}
        words = [0]
        self.requests = SimpleNamespace(
            words=words, counter=0, slots=slots, rotating_slots=rotating, published=lambda: words[0]
        )
        counter = [0]
        self.replies = SimpleNamespace(
            words=counter,
            counter=0,
            poller=SimpleNamespace(load=lambda: counter[0]),
            memories=[None] * slots,
            try_head=self.heads.get,
        )

    def answer(self, sequence: int, status: Status = Status.OK, flags: int = 0, payload_bytes: int = 0) -> None:
        names = dict.fromkeys(ReplyHead._fields, 0)
        self.heads[sequence] = ReplyHead(
            **{**names, "sequence": sequence, "status": status, "flags": flags, "payload_bytes": payload_bytes}
        )
        self.replies.words[0] += 1


def decode(service: str, decoder: Any, memory: Any, pending: Pending, head: ReplyHead) -> tuple[Any, Any]:
    """The number of the request as its result, or an error for any status but OK."""
    if head.status != Status.OK:
        return None, ShmServeError(f"status {head.status}")
    return number_of(head.sequence), None


@pytest.fixture
def channel() -> Channel:
    return Channel(slots=3, rotating=3)


@pytest.fixture
def capacity() -> SlotCapacity:
    return SlotCapacity(3)


@pytest.fixture
def table(channel: Channel, capacity: SlotCapacity) -> RequestTable:
    table = RequestTable("arm", capacity, decode)
    table.begin(cast(Any, SimpleNamespace(channel=channel, decoder=None)), stateful=None)
    return table


def pending_request() -> Pending:
    return Pending(cast(Any, None), 0, 1 << 62)


def publish(table: RequestTable, channel: Channel, pending: Pending) -> int:
    """Claim a slot and publish, as the pipeline does."""
    sequence = table.claim(pending)
    if sequence > 0:
        channel.requests.words[0] = sequence
    return sequence


def test_requests_count_on_and_take_the_slots_in_turn(table: RequestTable, channel: Channel) -> None:
    sequences = [publish(table, channel, pending_request()) for _ in range(3)]

    assert [number_of(sequence) for sequence in sequences] == [1, 2, 3]
    assert [slot_of(sequence) for sequence in sequences] == [1, 2, 0]


@pytest.mark.parametrize("answered", [1, 2, 3])
def test_a_full_table_claims_the_slot_that_a_reply_frees(table: RequestTable, channel: Channel, answered: int) -> None:
    sequences = [publish(table, channel, pending_request()) for _ in range(3)]
    assert table.claim(pending_request()) == BACK_PRESSURED

    channel.answer(sequences[answered - 1])

    assert slot_of(publish(table, channel, pending_request())) == slot_of(sequences[answered - 1])


def test_a_poll_completes_each_request_with_its_own_reply(table: RequestTable, channel: Channel) -> None:
    requests = [pending_request() for _ in range(3)]
    sequences = [publish(table, channel, pending) for pending in requests]
    channel.answer(sequences[2])
    channel.answer(sequences[0], Status.FAILED)

    assert table.poll() and not table.poll()

    assert [pending._completed_ns != 0 for pending in requests] == [True, False, True]
    assert requests[2]._result == 3
    assert str(requests[0]._error) == f"status {int(Status.FAILED)}"
    assert table.last is not None and table.polled_count == 2
    assert list(table.in_flight) == [sequences[1]]


def test_an_abandoned_request_keeps_its_slot_until_its_reply_is_discarded(
    table: RequestTable, channel: Channel
) -> None:
    pending = pending_request()
    sequence = publish(table, channel, pending)

    assert table.abandon(pending) and not table.abandon(pending)
    assert sequence in table.in_flight
    channel.answer(sequence)
    table.poll()

    assert (table.late_replies, table.in_flight, pending._completed_ns) == (1, {}, 0)


def test_a_request_that_was_never_published_is_forgotten(table: RequestTable, channel: Channel) -> None:
    interrupted = pending_request()
    first = table.claim(interrupted)
    assert table.is_busy() is False

    assert table.claim(pending_request()) == first


def test_a_retracted_request_leaves_nothing(table: RequestTable) -> None:
    pending = pending_request()
    table.claim(pending)

    table.retract(pending)

    assert (table.in_flight, pending.sequence) == ({}, 0)


def test_a_reply_that_needs_larger_slots_is_deferred_and_delivered_after_the_switch(
    table: RequestTable, channel: Channel, capacity: SlotCapacity
) -> None:
    pending, other = pending_request(), pending_request()
    sequence, busy = publish(table, channel, pending), publish(table, channel, other)
    channel.answer(sequence, Status.RESIZE_REQUIRED, payload_bytes=5000)
    table.poll()

    assert table.claim(pending_request()) == RESIZE_REQUIRED
    assert capacity.reply_bytes == 5000
    assert table.is_busy()  # the other request lives in this generation
    channel.answer(busy)
    table.poll()
    assert not table.is_busy()

    table.switch(table.deferred.copy())
    channel.answer(sequence)
    table.poll()
    assert pending._result == 1
    assert table.deferred == []


def test_a_refused_resize_completes_the_deferred_requests_with_an_error(table: RequestTable, channel: Channel) -> None:
    pending = pending_request()
    channel.answer(publish(table, channel, pending), Status.RESIZE_REQUIRED)
    table.poll()

    table.fail_deferred(lambda number: ShmServeError(f"request {number}"))

    assert str(pending._error) == "request 1"
    assert (table.deferred, table.in_flight) == ([], {})


def test_a_lost_connection_completes_every_request_once(table: RequestTable, channel: Channel) -> None:
    cancelled, waiting, abandoned = (pending_request() for _ in range(3))
    for pending in (cancelled, waiting, abandoned):
        publish(table, channel, pending)
    table.fail(cancelled, RequestCancelled("cancelled"))
    table.abandon(abandoned)

    table.fail_all(lambda: ServiceUnavailable("lost"))
    table.clear()

    assert [type(pending._error) for pending in (cancelled, waiting, abandoned)] == [
        RequestCancelled,
        ServiceUnavailable,
        type(None),
    ]
    assert table.in_flight == {}


def test_a_request_loan_keeps_its_thread_from_claiming_until_it_ends(table: RequestTable) -> None:
    loan = RequestLoan(cast(Any, None), None, sequence_of(1, 1), [], DEFAULT_OPTIONS, 0)
    table.lend(loan)
    assert table.is_lent(loan)
    with pytest.raises(SlotsExhausted, match="send"):
        table.claim(pending_request())
    loan.thread += 1  # as if another thread had it

    assert table.claim(pending_request()) == BACK_PRESSURED
    table.release_loan(loan)
    assert table.claim(pending_request()) > 0


def test_a_loan_that_its_caller_lost_has_ended(table: RequestTable) -> None:
    table.lend(RequestLoan(cast(Any, None), None, sequence_of(1, 1), [], DEFAULT_OPTIONS, 0))
    gc.collect()

    assert table.claim(pending_request()) > 0


def test_replies_on_loan_occupy_their_slots(channel: Channel, capacity: SlotCapacity) -> None:
    def lend(service: str, decoder: Any, memory: Any, pending: Pending, head: ReplyHead) -> tuple[Any, None]:
        loan = ReplyLoan(
            cast(Any, None), head.sequence, cast(Any, SimpleNamespace(raw=memoryview(b""))), pending._loan_thread
        )
        loan.hold({}, in_slot=True)
        return loan, None

    table = RequestTable("arm", capacity, lend)
    table.begin(cast(Any, SimpleNamespace(channel=channel, decoder=None)), stateful=None)
    requests = [Pending(cast(Any, None), 0, 1 << 62, _loan_thread=7) for _ in range(3)]
    for pending in requests:
        channel.answer(publish(table, channel, pending))
        table.poll()

    assert table.is_busy() and table.lends_reply_to(7) and not table.lends_reply_to(8)
    assert table.claim(pending_request()) == BACK_PRESSURED
    table.release_reply(requests[1].sequence)
    assert slot_of(table.claim(pending_request())) == slot_of(requests[1].sequence)


@pytest.mark.parametrize(
    ("declared", "flags", "stateful"),
    [(None, None, None), (True, None, True), (False, None, False), (False, int(Flag.STATEFUL), True), (True, 0, False)],
)
def test_the_latest_reply_says_whether_the_model_keeps_state_or_else_its_description(
    channel: Channel, capacity: SlotCapacity, declared: bool | None, flags: int | None, stateful: bool | None
) -> None:
    table = RequestTable("arm", capacity, decode)
    table.begin(cast(Any, SimpleNamespace(channel=channel, decoder=None)), declared)
    if flags is not None:
        channel.answer(publish(table, channel, pending_request()), flags=flags)
        table.poll()

    assert table.is_stateful() is stateful
