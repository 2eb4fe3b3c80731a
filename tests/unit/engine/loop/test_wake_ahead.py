"""Waking up ahead: which request is expected, and what is learnt from whether it came."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from shmserve.daemon.engine.channel.expectation import FIRST_DOUBT_NS, FIRST_LEAD_NS, Expectation
from shmserve.daemon.engine.loop.wake_ahead import LONGEST_NS, Expected, WakeAhead, leave_processor
from shmserve.daemon.ipc.stats import Counter
from shmserve.layout import COUNTER_LINE

_MS = 1_000_000
_NOW = 1_000_000 * _MS
_EXPECTED, _PERIOD = COUNTER_LINE.names.index("expected_ns"), COUNTER_LINE.names.index("period_ns")


def robot(*, last_ns: int = _NOW - 5 * _MS, period_ns: int = 0, expected_ns: int = 0) -> Any:
    """A client's state, as far as it is looked at; `last_ns`: when it published its latest request."""
    words = [0] * 16
    words[8 + _EXPECTED], words[8 + _PERIOD] = expected_ns, period_ns
    state = SimpleNamespace(words=words, counter=8, expectation=Expectation(), published_ns=last_ns)
    state.submitted_ns = lambda: state.published_ns
    return state


@pytest.fixture
def ahead() -> WakeAhead:
    return WakeAhead(memoryview(bytearray(8 * 64)).cast("Q"))


def test_nothing_is_expected_of_a_client_that_says_nothing_and_keeps_no_rhythm(ahead: WakeAhead) -> None:
    assert ahead.next([robot(), robot(last_ns=0)], _NOW) is None


def test_the_engine_is_awake_before_the_earliest_request(ahead: WakeAhead) -> None:
    slow = robot(period_ns=50 * _MS)
    fast = robot(period_ns=20 * _MS)

    expected = ahead.next([slow, fast], _NOW)

    assert expected == Expected(_NOW + 15 * _MS - FIRST_LEAD_NS, _NOW + 15 * _MS, fast)


def test_a_client_may_say_when_it_asks(ahead: WakeAhead) -> None:
    soon = robot(expected_ns=_NOW + 2 * _MS)
    assert ahead.next([soon], _NOW) == Expected(_NOW + 2 * _MS - FIRST_LEAD_NS, _NOW + 2 * _MS, soon)

    between = robot(period_ns=20 * _MS, expected_ns=_NOW + 2 * _MS)  # 13 ms before its beat
    assert ahead.next([between], _NOW).due_ns == _NOW + 2 * _MS  # type: ignore[union-attr]


@pytest.mark.parametrize("said_ms", [13, 15, 16])
def test_the_rhythm_is_more_exact_than_what_a_client_says_of_the_same_request(ahead: WakeAhead, said_ms: int) -> None:
    both = robot(period_ns=20 * _MS, expected_ns=_NOW + said_ms * _MS)

    assert ahead.next([both], _NOW).due_ns == _NOW + 15 * _MS  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "said_ns", [1, _NOW - 6 * _MS, _NOW - LONGEST_NS, _NOW + 3_600_000 * _MS, (1 << 64) - 1], ids=hex
)
def test_a_time_that_has_passed_or_is_far_away_is_not_believed(ahead: WakeAhead, said_ns: int) -> None:
    assert ahead.next([robot(expected_ns=said_ns)], _NOW) is None


def test_a_time_that_was_said_for_a_request_that_has_come_is_over(ahead: WakeAhead) -> None:
    early = robot(last_ns=_NOW - _MS, expected_ns=_NOW - _MS)

    assert ahead.next([early], _NOW) is None


def test_a_request_is_waited_for_once(ahead: WakeAhead) -> None:
    state = robot(period_ns=20 * _MS)
    expected = ahead.next([state], _NOW)
    assert expected is not None
    ahead.began(expected)

    assert ahead.next([state], expected.due_ns) is None

    state.published_ns = expected.due_ns + _MS
    again = ahead.next([state], expected.due_ns + 2 * _MS)
    assert again is not None and again.due_ns > expected.due_ns


def test_the_lead_follows_how_long_the_engine_waits(ahead: WakeAhead) -> None:
    state = robot(period_ns=20 * _MS)
    expected = Expected(_NOW, _NOW, state)

    ahead.came(expected, 0, 50_000)
    assert state.expectation.lead_ns > FIRST_LEAD_NS
    for _ in range(100):
        ahead.came(expected, 0, 50_000)
    most = state.expectation.lead_ns
    for _ in range(100):
        ahead.came(expected, 300_000, 350_000)

    assert state.expectation.lead_ns < FIRST_LEAD_NS < most < LONGEST_NS


def test_a_client_whose_requests_do_not_come_is_not_believed_for_longer_and_longer(ahead: WakeAhead) -> None:
    state = robot(period_ns=20 * _MS)
    expected = Expected(_NOW, _NOW, state)
    doubts = []
    for _ in range(4):
        for _ in range(3):
            assert ahead.next([state], _NOW) is not None
            ahead.came_not(expected, _NOW, LONGEST_NS)
        assert ahead.next([state], _NOW) is None
        doubts.append(state.expectation.doubted_until_ns - _NOW)
        state.expectation.doubted_until_ns = 0

    assert doubts == [FIRST_DOUBT_NS * 2**power for power in range(4)]

    ahead.came(expected, 100_000, 100_000)
    assert state.expectation.doubt_ns == FIRST_DOUBT_NS


def test_a_robot_that_is_late_now_and_then_is_believed(ahead: WakeAhead) -> None:
    state = robot(period_ns=20 * _MS)
    for beat in range(10):
        expected = ahead.next([state], _NOW + beat * 20 * _MS)
        assert expected is not None
        ahead.began(expected)
        ahead.came_not(expected, expected.due_ns + LONGEST_NS, LONGEST_NS)
        state.published_ns = expected.due_ns + _MS

    assert state.expectation.lead_ns < FIRST_LEAD_NS


def test_it_counts_what_it_costs(ahead: WakeAhead) -> None:
    expected = Expected(_NOW, _NOW, robot())
    ahead.came(expected, 100_000, 120_000)
    ahead.came_not(expected, _NOW, LONGEST_NS)

    words = ahead._words
    assert (words[Counter.AHEAD_MET], words[Counter.AHEAD_MISSED]) == (1, 1)
    assert words[Counter.AHEAD_NS] == 120_000 + LONGEST_NS


def test_the_engine_leaves_a_client_s_processor_and_may_use_all_of_them_afterwards() -> None:
    allowed = os.sched_getaffinity(0)
    here = min(allowed)
    try:
        os.sched_setaffinity(0, {here})
        assert not leave_processor(here), "there is no other one"
        assert os.sched_getaffinity(0) == {here}
        assert not leave_processor(here + 1)
    finally:
        os.sched_setaffinity(0, allowed)
    assert leave_processor(here) == (len(allowed) > 1)
    assert os.sched_getaffinity(0) == allowed
