"""Both ends of both rings on one piece of shared memory: order, wrap-around, and what is not believed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from shmserve.layout import REQUEST, Geometry
from shmserve.protocol import Kind, Status
from shmserve.ring import ReplyReader, ReplyWriter, RequestReader, RequestWriter
from shmserve.segment import Identity, Segment, create_segment, unlink_segment

SLOTS = 3
GEOMETRY = Geometry(slots=SLOTS, metadata_bytes=64, payload_bytes=8)


class Ends(NamedTuple):
    writer: RequestWriter
    reader: RequestReader
    answers: ReplyWriter
    answered: ReplyReader


@pytest.fixture
def ends() -> Iterator[Ends]:
    names = [f"/shmserve-test.{secrets.token_hex(8)}" for _ in range(2)]
    for name in names:
        create_segment(name, GEOMETRY, Identity(1, 2, 3))
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


def test_what_is_published_is_taken_as_it_was_written(ends: Ends) -> None:
    assert ends.reader.published() == 0
    for sequence in range(1, 50):
        ends.writer.memory(sequence).payload[:] = sequence
        ends.writer.publish(request(sequence))

        assert ends.reader.published() == ends.writer.counter() == sequence
        head = ends.reader.head(sequence)
        assert head is not None and tuple(head) == request(sequence)
        assert (ends.reader.memory(sequence).payload == sequence).all()


def test_slots_are_used_in_turn(ends: Ends) -> None:
    for sequence in range(1, SLOTS + 1):
        ends.writer.publish(request(sequence))
    assert [ends.reader.head(sequence) is not None for sequence in range(1, SLOTS + 1)] == [True] * SLOTS

    ends.writer.publish(request(SLOTS + 1))

    assert ends.reader.head(1) is None
    assert ends.reader.head(SLOTS + 1) is not None


@pytest.mark.parametrize("other", [0, 1 + SLOTS, 1 - SLOTS + (1 << 64), (1 << 64) - 1])
def test_a_slot_that_holds_another_sequence_is_not_believed(ends: Ends, other: int) -> None:
    ends.writer.publish(request(1))
    ends.writer.segment.words[GEOMETRY.slot_offset(1) // 8] = other

    assert ends.reader.head(1) is None


def test_a_head_is_a_copy(ends: Ends) -> None:
    ends.writer.publish(request(1))
    head = ends.reader.head(1)
    ends.writer.publish(request(1 + SLOTS))

    assert head is not None and head.sequence == 1


def test_a_cancelled_request_is_the_one_that_was_meant(ends: Ends) -> None:
    ends.writer.publish(request(1))
    ends.writer.publish(request(2))

    ends.writer.cancel(2)

    assert [ends.reader.cancelled(1), ends.reader.cancelled(2)] == [False, True]
    ends.writer.publish(request(2 + SLOTS))
    assert not ends.reader.cancelled(2 + SLOTS)


def test_a_cancellation_that_comes_too_late_hits_nobody(ends: Ends) -> None:
    ends.writer.publish(request(1))
    ends.writer.publish(request(1 + SLOTS))

    ends.writer.cancel(1)

    assert not ends.reader.cancelled(1 + SLOTS)


def test_a_reply_is_there_once_it_is_complete(ends: Ends) -> None:
    for sequence in range(1, 20):
        assert not ends.answered.answered(sequence)
        assert ends.answered.try_head(sequence) is None
        count = ends.answered.answered_count()

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
        assert ends.answered.answered_count() == count + 1


def test_replies_may_come_in_any_order(ends: Ends) -> None:
    answer(ends, 3)
    answer(ends, 1)

    assert [ends.answered.answered(sequence) for sequence in (1, 2, 3)] == [True, False, True]


def test_a_reply_to_an_earlier_request_of_the_slot_is_not_taken_for_a_later_one(ends: Ends) -> None:
    answer(ends, 1)

    assert ends.answered.try_head(1 + SLOTS) is None
    assert not ends.answered.answered(1 + SLOTS)
    answer(ends, 1 + SLOTS)
    assert ends.answered.try_head(1) is None


def test_the_next_engine_sees_what_was_answered(ends: Ends) -> None:
    answer(ends, 2)

    assert [ends.answers.answered(sequence) for sequence in (1, 2, 2 + SLOTS)] == [False, True, False]
    answer(ends, 2 + SLOTS)
    assert ends.answers.answered(2)


def test_the_next_engine_sees_how_often_a_request_was_begun(ends: Ends) -> None:
    assert ends.answers.attempts(1) == 0
    assert [ends.answers.take(1), ends.answers.take(1)] == [1, 2]
    assert ends.answers.attempts(1) == 2

    assert ends.answers.attempts(1 + SLOTS) == 0
    assert ends.answers.take(1 + SLOTS) == 1
    assert ends.answers.attempts(1) == 0


def test_closing_lets_the_memory_go_unless_somebody_still_looks_at_it(ends: Ends) -> None:
    kept = ends.answered.memory(1).payload
    ends.answers.memory(1).payload[:] = 9
    ends.answered.close()
    ends.answered.close()

    assert kept.tolist() == [9] * 8
