"""Rhythm of a client's requests: found, followed, given up."""

from __future__ import annotations

import random

import pytest

from shmserve.rhythm import Rhythm

_MS = 1_000_000
_START = 1_000 * _MS


def after(*gaps_ms: float, given_ms: float = 0) -> tuple[Rhythm, int]:
    """The rhythm of requests with these gaps, and the time of the last one."""
    rhythm, now_ns = Rhythm(), _START
    rhythm.note(now_ns, int(given_ms * _MS))
    for gap_ms in gaps_ms:
        now_ns += int(gap_ms * _MS)
        rhythm.note(now_ns, int(given_ms * _MS))
    return rhythm, now_ns


def due_in_ms(*gaps_ms: float, given_ms: float = 0) -> float | None:
    """How long after the last request the next one is due; None: not known."""
    rhythm, now_ns = after(*gaps_ms, given_ms=given_ms)
    due_ns = rhythm.due_ns(now_ns)
    return (due_ns - now_ns) / _MS if due_ns else None


@pytest.mark.parametrize("period_ms", [2, 5, 20, 100, 1000])
def test_a_few_equal_gaps_make_a_rhythm(period_ms: float) -> None:
    assert due_in_ms(*[period_ms] * 2) is None
    assert due_in_ms(*[period_ms] * 5) == period_ms


@pytest.mark.parametrize("period_ms", [0.5, 0.9, 3000])
def test_a_period_for_which_the_engine_need_not_wake_up_is_none(period_ms: float) -> None:
    assert due_in_ms(*[period_ms] * 10) is None
    assert due_in_ms(given_ms=period_ms) is None


@pytest.mark.parametrize("seed", range(5))
def test_an_irregular_client_has_no_rhythm(seed: int) -> None:
    chance = random.Random(seed)
    rhythm, now_ns, known = Rhythm(), _START, 0
    for _ in range(200):
        now_ns += int(chance.uniform(5, 100) * _MS)
        rhythm.note(now_ns)
        known += rhythm.due_ns(now_ns) > 0

    assert known < 10


@pytest.mark.parametrize("seed", range(5))
def test_the_phase_is_that_of_the_loop_and_not_of_its_last_late_beat(seed: int) -> None:
    chance = random.Random(seed)
    rhythm, errors = Rhythm(), []
    for beat in range(300):
        due_ns = rhythm.due_ns(_START + beat * 20 * _MS)
        if due_ns:
            errors.append(abs(due_ns - _START - beat * 20 * _MS) / _MS)
        rhythm.note(_START + beat * 20 * _MS + int(chance.expovariate(5) * _MS))

    assert len(errors) > 280
    assert sorted(errors)[len(errors) // 2] < 0.3


def test_it_follows_a_loop_whose_period_changes_a_little() -> None:
    assert due_in_ms(*[20] * 10, *[20.5] * 40) == pytest.approx(20.5, abs=0.3)


def test_one_beat_that_is_late_or_left_out_does_not_end_it_and_two_do() -> None:
    assert due_in_ms(*[20] * 10, 27) == 20
    assert due_in_ms(*[20] * 10, 40) == 20
    assert due_in_ms(*[20] * 10, 27, 33, 9, 44) is None


def test_a_new_period_is_learnt() -> None:
    assert due_in_ms(*[20] * 10, *[50] * 10) == pytest.approx(50, abs=1)


def test_a_period_that_is_given_counts_from_the_first_request() -> None:
    assert due_in_ms(given_ms=20) == 20
    assert due_in_ms(21, 19, 20, given_ms=20) == pytest.approx(20, abs=1)


def test_a_client_that_does_not_keep_the_period_that_it_gave_is_irregular() -> None:
    assert due_in_ms(*[33] * 20, given_ms=20) is None
    assert due_in_ms(*[33] * 20, *[20] * 5, given_ms=20) == 20


def test_a_request_that_is_late_is_due_for_a_part_of_the_period() -> None:
    rhythm, now_ns = after(*[20] * 5)

    assert rhythm.due_ns(now_ns + 21 * _MS) == now_ns + 20 * _MS
    assert rhythm.due_ns(now_ns + 23 * _MS) == 0


@pytest.mark.parametrize("word", [0, 1, (1 << 64) - 1])
def test_times_that_cannot_be_are_no_rhythm(word: int) -> None:
    rhythm = Rhythm()
    for _ in range(10):
        rhythm.note(word, word)

    assert rhythm.due_ns(_START) == 0
