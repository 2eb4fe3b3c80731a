"""Both ends of both rings on one piece of shared memory: order, wrap-around, and what is not believed."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from shmserve.layout import REQUEST, Geometry, sequence_of
from shmserve.protocol import Kind, Status
from shmserve.ring import ReplyReader, ReplyWriter, RequestReader, RequestWriter
from shmserve.segment import Identity, Segment, create_segment, unlink_segment

pytestmark = pytest.mark.pure_too

SLOTS = 3
GEOMETRY = Geometry(slots=SLOTS, metadata_bytes=64, payload_bytes=8)


class Ends(NamedTuple):
    writer: RequestWriter
    reader: RequestReader
    answers: ReplyWriter
    answered: ReplyReader


@pytest.fixture
def ends() -> Iterator[Ends]:
    with opened_ends(GEOMETRY) as ends:
        yield ends


@contextlib.contextmanager
def opened_ends(geometry: Geometry) -> Iterator[Ends]:
    names = [f"/shmserve-test.{secrets.token_hex(8)}" for _ in range(2)]
    for name in names:
        create_segment(name, geometry, Identity(1, 2, 3))
    requests, replies = names
    ends = Ends(
        RequestWriter(Segment.open(requests, writable=True)),
        RequestReader(Segment.open(requests, writable=False)),
        ReplyWriter(Segment.open(replies, writable=True)),
        ReplyReader(Segment.open(replies, writable=False)),
    )
    yield ends
    for end in ends:
        end.close()
    for name in names:
        unlink_segment(name)


def request(sequence: int) -> tuple[int, ...]:
    """A head whose every word tells its sequence and its place."""
    return (sequence, Kind.INFER, *(sequence * 100 + place for place in range(2, len(REQUEST.names) - 1)), 0)


def answer(ends: Ends, sequence: int, status: int = Status.OK) -> None:
    words = (sequence * 100 + place for place in range(2, 11))
    ends.answers.complete(sequence, status, *words)


FIRST, SECOND, THIRD = (sequence_of(number, slot) for slot, number in enumerate((1, 2, 3)))
#: The next request in the first one's slot, and in the second one's.
FIRST_AGAIN, SECOND_AGAIN = sequence_of(4, 0), sequence_of(5, 1)


@pytest.mark.fault("T17")
def test_a_published_request_is_read_as_it_was_written(ends: Ends) -> None:
    assert ends.reader.published() == 0
    for number in range(1, 50):
        sequence = sequence_of(number, number % SLOTS)
        ends.writer.memory(sequence).payload[:] = number
        ends.writer.publish(request(sequence))

        assert ends.reader.published() == ends.writer.published() == sequence
        head = ends.reader.head(sequence)
        assert head is not None and tuple(head) == request(sequence)
        assert (ends.reader.memory(sequence).payload == number).all()


def test_a_request_is_in_the_slot_that_its_sequence_names(ends: Ends) -> None:
    for sequence in (FIRST, SECOND, THIRD):
        ends.writer.publish(request(sequence))
    assert all(ends.reader.head(sequence) is not None for sequence in (FIRST, SECOND, THIRD))

    ends.writer.publish(request(FIRST_AGAIN))

    assert ends.reader.head(FIRST) is None
    assert ends.reader.head(FIRST_AGAIN) is not None


@pytest.mark.parametrize("slots", [1, 3, 5, 6, 7, 64])
def test_every_end_finds_a_request_and_its_reply_in_the_same_slot_however_many_there_are(slots: int) -> None:
    with opened_ends(Geometry(slots=slots, metadata_bytes=64, payload_bytes=8)) as ends:
        for number in range(1, 3 * slots + 2):
            for slot in range(slots):
                sequence = sequence_of(number, slot)
                offset = ends.answers.segment.geometry.slot_offset(slot)
                ends.writer.publish(request(sequence))
                ends.answers.take(sequence)
                answer(ends, sequence)

                head = ends.answered.try_head(sequence)
                assert head is not None and head.sequence == sequence == ends.answers.head(sequence).sequence
                assert head == ends.answers.head(sequence)
                assert ends.answers.segment.words[offset // 8] == sequence
                assert ends.answers.answered(sequence) and ends.answered.answered(sequence)
                assert ends.answers.attempts(sequence) == 1
                taken = ends.reader.head(sequence)
                assert taken is not None and tuple(taken) == request(sequence)
                for end in ends:
                    assert end.memory(sequence) is end.memories[slot]
        last = [sequence_of(3 * slots + 1, slot) for slot in range(slots)]
        assert [ends.answers.head(sequence).sequence for sequence in last] == last


def test_several_requests_are_found_in_their_order_whatever_their_slots(ends: Ends) -> None:
    published = [sequence_of(1, 2), sequence_of(2, 0), sequence_of(3, 1), sequence_of(4, 0)]
    for sequence in published:
        ends.writer.publish(request(sequence))

    assert ends.reader.between(0, published[-1]) == [published[0], published[2], published[3]]
    assert ends.reader.between(published[2], published[3]) == [published[3]]
    assert ends.reader.between(published[0], published[2]) == [published[2]]
    assert ends.reader.between(published[3], published[3]) == []


@pytest.mark.parametrize("claim", [0, THIRD, (1 << 64) - 1, (1 << 64) - SLOTS])
def test_a_request_in_another_slot_than_it_names_is_not_found(ends: Ends, claim: int) -> None:
    ends.writer.publish(request(FIRST))
    ends.writer.segment.words[GEOMETRY.slot_offset(1) // 8] = claim

    assert ends.reader.between(0, THIRD) == [FIRST]


@pytest.mark.parametrize("other", [0, FIRST_AGAIN, SECOND, (1 << 64) - 1])
def test_a_slot_that_holds_another_sequence_is_not_believed(ends: Ends, other: int) -> None:
    ends.writer.publish(request(FIRST))
    ends.writer.segment.words[GEOMETRY.slot_offset(0) // 8] = other

    assert ends.reader.head(FIRST) is None


@pytest.mark.parametrize("slot", [SLOTS, 63])
def test_a_slot_that_the_segment_does_not_have_holds_nothing(ends: Ends, slot: int) -> None:
    assert ends.reader.head(sequence_of(1, slot)) is None


@pytest.mark.fault("T04")
def test_a_head_is_a_copy(ends: Ends) -> None:
    ends.writer.publish(request(FIRST))
    head = ends.reader.head(FIRST)
    ends.writer.publish(request(FIRST_AGAIN))

    assert head is not None and head.sequence == FIRST


def test_a_cancelled_request_is_the_one_that_was_meant(ends: Ends) -> None:
    ends.writer.publish(request(FIRST))
    ends.writer.publish(request(SECOND))

    ends.writer.cancel(SECOND)

    assert [ends.reader.cancelled(FIRST), ends.reader.cancelled(SECOND)] == [False, True]
    ends.writer.publish(request(SECOND_AGAIN))
    assert not ends.reader.cancelled(SECOND_AGAIN)


def test_a_late_cancellation_affects_no_request(ends: Ends) -> None:
    ends.writer.publish(request(FIRST))
    ends.writer.publish(request(FIRST_AGAIN))

    ends.writer.cancel(FIRST)

    assert not ends.reader.cancelled(FIRST_AGAIN)


def test_a_reply_is_there_once_it_is_complete(ends: Ends) -> None:
    for number in range(1, 20):
        sequence = sequence_of(number, number % SLOTS)
        assert not ends.answered.answered(sequence)
        assert ends.answered.try_head(sequence) is None
        count = ends.answered.words[ends.answered.counter]

        answer(ends, sequence)

        assert ends.answered.answered(sequence)
        head = ends.answered.try_head(sequence)
        assert head is not None
        assert (head.sequence, head.status, head.flags, head.copied_ns) == (
            sequence,
            0,
            sequence * 100 + 2,
            sequence * 100 + 10,
        )
        assert ends.answered.words[ends.answered.counter] == count + 1


def test_replies_may_come_in_any_order(ends: Ends) -> None:
    answer(ends, THIRD)
    answer(ends, FIRST)

    assert [ends.answered.answered(sequence) for sequence in (FIRST, SECOND, THIRD)] == [True, False, True]


@pytest.mark.fault("T59")
def test_a_reply_to_an_earlier_request_of_the_slot_is_not_taken_for_a_later_one(ends: Ends) -> None:
    answer(ends, FIRST)

    assert ends.answered.try_head(FIRST_AGAIN) is None
    assert not ends.answered.answered(FIRST_AGAIN)
    answer(ends, FIRST_AGAIN)
    assert ends.answered.try_head(FIRST) is None


def test_the_next_engine_sees_what_was_answered(ends: Ends) -> None:
    answer(ends, SECOND)

    assert [ends.answers.answered(sequence) for sequence in (FIRST, SECOND, SECOND_AGAIN)] == [False, True, False]
    answer(ends, SECOND_AGAIN)
    assert ends.answers.answered(SECOND)


def test_the_next_engine_sees_how_often_a_request_was_begun(ends: Ends) -> None:
    assert ends.answers.attempts(FIRST) == 0
    assert [ends.answers.take(FIRST), ends.answers.take(FIRST)] == [1, 2]
    assert ends.answers.attempts(FIRST) == 2

    assert ends.answers.attempts(FIRST_AGAIN) == 0
    assert ends.answers.take(FIRST_AGAIN) == 1
    assert ends.answers.attempts(FIRST) == 0


def test_closing_releases_the_memory_unless_a_view_of_it_exists(ends: Ends) -> None:
    kept = ends.answered.memory(FIRST).payload
    ends.answers.memory(FIRST).payload[:] = 9
    ends.answered.close()
    ends.answered.close()

    assert kept.tolist() == [9] * 8


def test_a_channel_without_room_for_a_payload_has_its_ends_all_the_same() -> None:
    name = f"/shmserve-test.{secrets.token_hex(8)}"
    create_segment(name, Geometry(slots=2, metadata_bytes=64, payload_bytes=0), Identity(1, 2, 3))
    try:
        writer = RequestWriter(Segment.open(name, writable=True))
        writer.publish(request(FIRST))

        assert (writer.rotating_slots, writer.published()) == (2, FIRST)
        writer.close()
    finally:
        unlink_segment(name)
