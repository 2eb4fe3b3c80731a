"""When to be awake for the next reply, by how long the last ones took."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmserve.client.service_time import LEAST_NS, LONGEST_NS, MOST_NS, ServiceTime

_MS = 1_000_000
_US = 1_000


def after(*times_ns: int) -> ServiceTime:
    service = ServiceTime()
    for time_ns in times_ns:
        service.note(time_ns)
    return service


def regular(service_ms: float = 5) -> ServiceTime:
    return after(*[int(service_ms * _MS)] * 9)


def missed(service: ServiceTime, times: int) -> None:
    for _ in range(times):
        assert service.sleep_ns
        service.note(5 * _MS, -service.poll_ns)


@pytest.mark.parametrize("service_ms", [1.5, 2, 5, 15, 30, 1000])
def test_a_client_is_awake_shortly_before_a_regular_reply_and_a_little_longer(service_ms: float) -> None:
    service_ns = int(service_ms * _MS)
    service = regular(service_ms)

    assert service_ns - 250 * _US <= service.sleep_ns < service_ns
    assert service_ns < service.sleep_ns + service.poll_ns < service_ns + LONGEST_NS


@pytest.mark.parametrize("spread_us", [20, 50])
@pytest.mark.parametrize("seed", range(5))
def test_times_that_differ_little_are_regular(spread_us: int, seed: int) -> None:
    noise = random.Random(seed)
    service = ServiceTime()
    planned = met = 0
    for _ in range(300):
        time_ns = 5 * _MS + noise.randrange(-spread_us, spread_us) * _US
        if service.sleep_ns:
            planned += 1
            met += service.sleep_ns <= time_ns < service.sleep_ns + service.poll_ns
        # The timer ends 0.05 ms late.
        polled_ns = max(0, time_ns - service.sleep_ns - 50 * _US) if service.sleep_ns else 0
        service.note(time_ns, polled_ns)

    assert planned > 280
    assert met > planned * 0.9


@pytest.mark.parametrize("seed", range(5))
def test_an_irregular_service_costs_nothing(seed: int) -> None:
    noise = random.Random(seed)
    service = ServiceTime()
    for _ in range(1000):
        service.note(noise.randrange(2 * _MS, 9 * _MS))

        assert service.sleep_ns == service.poll_ns == 0


@given(st.lists(st.tuples(st.integers(0, 1 << 66), st.integers(-(1 << 62), 1 << 62)), max_size=60))
def test_no_reply_is_polled_for_longer_than_the_bound(replies: list[tuple[int, int]]) -> None:
    service = ServiceTime()
    for service_ns, polled_ns in replies:
        service.note(service_ns, polled_ns)

        if service.sleep_ns:
            assert 0 < service.poll_ns <= LONGEST_NS
            assert 0 < service.sleep_ns <= MOST_NS
            assert service.poll_ns <= (service.sleep_ns + service.poll_ns) / 7  # an eighth of the earliest reply
        else:
            assert service.poll_ns == 0


@pytest.mark.parametrize("service_ns", [0, LEAST_NS - 1, MOST_NS + 1, 1 << 66])
def test_a_service_that_is_spun_through_or_takes_too_long_is_not_expected(service_ns: int) -> None:
    assert after(*[service_ns] * 20).sleep_ns == 0


def test_one_reply_in_nine_may_take_any_time() -> None:
    service = regular()
    plan = service.sleep_ns

    for time_ms in (20, *[5] * 8, 1, *[5] * 8):
        service.note(time_ms * _MS, 50 * _US if time_ms == 5 else 0)
        assert service.sleep_ns == plan


def test_a_service_that_changes_is_expected_again_once_the_times_are_regular() -> None:
    service = regular()
    for _ in range(4):
        service.note(8 * _MS)
    assert service.sleep_ns == 0

    for _ in range(5):
        service.note(8 * _MS)
    assert 7 * _MS < service.sleep_ns < 8 * _MS


def test_a_client_that_polls_in_vain_doubts_for_a_while_and_for_longer_each_time() -> None:
    service = regular()
    doubted = []
    for _ in range(9):
        missed(service, 3)
        doubted.append(0)
        while not service.sleep_ns:
            service.note(5 * _MS)
            doubted[-1] += 1

    assert doubted == [16, 32, 64, 128, 256, 512, 1024, 1024, 1024]


def test_a_reply_that_is_met_ends_the_doubt() -> None:
    service = regular()
    for _ in range(10):
        missed(service, 2)
        service.note(5 * _MS, 50 * _US)
    missed(service, 3)

    assert service.sleep_ns == 0


def test_a_client_wakes_up_earlier_if_timers_end_late_and_later_if_it_was_awake_for_long() -> None:
    service = regular()
    planned_ns = service.sleep_ns
    for _ in range(20):
        service.note(5 * _MS)  # the doorbell rang before the timer ended
    assert planned_ns - 200 * _US < service.sleep_ns < planned_ns
    assert service.poll_ns <= LONGEST_NS

    for _ in range(40):
        service.note(5 * _MS, 200 * _US)
    assert planned_ns < service.sleep_ns < 5 * _MS


def test_a_handler_that_raises_at_any_line_leaves_it_usable() -> None:
    service = regular()

    for line in (line for line in range(12) for _ in range(10)):
        lines = iter(range(100))

        def interrupt(
            frame: FrameType, event: str, argument: object, lines: Iterator[int] = lines, at: int = line
        ) -> Any:
            if event == "line" and next(lines) == at:
                raise KeyboardInterrupt
            return interrupt if frame.f_code is ServiceTime.note.__code__ else None

        sys.settrace(interrupt)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                service.note(7 * _MS)
        finally:
            sys.settrace(None)

    for _ in range(9):
        service.note(9 * _MS)
    assert 9 * _MS - 250 * _US <= service.sleep_ns < 9 * _MS
