"""Counters and histograms in the memory that engine and supervisor share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmserve.daemon.ipc.stats import (
    CHANNEL_LIMIT,
    STATS_BYTES,
    ChannelWord,
    Counter,
    Distribution,
    Stage,
    Stats,
    create_stats_memory,
)
from shmserve.histogram_buckets import bucket_of, lower_ns

_MINUTE_NS = 60 * 10**9


@pytest.fixture
def stats() -> Iterator[tuple[Stats, Stats]]:
    """The engine's and the supervisor's view of one memory."""
    descriptor = create_stats_memory()
    engine, supervisor = Stats(descriptor), Stats(descriptor)
    os.close(descriptor)
    yield engine, supervisor
    engine.close()
    supervisor.close()


@given(st.integers(0, 16 * _MINUTE_NS))
def test_a_duration_counts_in_the_bucket_around_it(duration_ns: int) -> None:
    bucket = bucket_of(duration_ns)

    assert lower_ns(bucket) <= duration_ns < lower_ns(bucket + 1)


@given(st.integers(1024, 16 * _MINUTE_NS))
def test_a_bucket_is_an_eighth_wide(duration_ns: int) -> None:
    bucket = bucket_of(duration_ns)

    assert lower_ns(bucket + 1) - lower_ns(bucket) <= lower_ns(bucket) / 8


@given(st.integers(0, 1 << 64), st.integers(0, 1 << 64))
def test_a_longer_duration_is_never_in_a_lower_bucket(one: int, other: int) -> None:
    assert (bucket_of(one) <= bucket_of(other)) == (one <= other) or bucket_of(one) == bucket_of(other)


def test_the_supervisor_reads_the_counters_of_the_engine(stats: tuple[Stats, Stats]) -> None:
    engine, supervisor = stats
    for number, counter in enumerate(Counter):
        engine.words[counter] += number + 1

    counters = supervisor.counters()

    assert counters == {counter.name.lower(): n + 1 for n, counter in enumerate(Counter) if counter != Counter.CONTROL}


def test_each_stage_of_a_request_is_counted_in_its_own_histogram(stats: tuple[Stats, Stats]) -> None:
    engine, supervisor = stats
    for _ in range(100):
        engine.record(50_000, 5_000, 5_000_000, 500)

    medians = {stage: supervisor.distribution(stage).percentile_us(50) for stage in Stage}

    assert {stage: supervisor.distribution(stage).total for stage in Stage} == dict.fromkeys(Stage, 100)
    for stage, us in zip(Stage, (50, 5, 5000, 0.5, 5055.5), strict=True):
        median = medians[stage]
        assert median is not None and abs(median - us) <= us / 8


@given(st.lists(st.integers(0, 1 << 22) | st.integers(0, _MINUTE_NS), min_size=1, max_size=30))
def test_the_short_cut_for_short_durations_counts_in_the_same_bucket(durations: list[int]) -> None:
    descriptor = create_stats_memory()
    stats = Stats(descriptor)
    os.close(descriptor)
    for duration in durations:
        stats.record(duration, 0, 0, 0)
    counts = stats.distribution(Stage.QUEUED).counts
    stats.close()

    found = [bucket for bucket, count in enumerate(counts) for _ in range(count)]
    assert found == sorted(map(bucket_of, durations))


def test_every_channel_has_its_own_line(stats: tuple[Stats, Stats]) -> None:
    engine, supervisor = stats
    for channel in range(CHANNEL_LIMIT):
        engine.words[engine.channel_index(channel) + ChannelWord.SERVED] = channel + 1
    engine.record(1 << 60, 1 << 60, 1 << 60, 1 << 60)

    assert [supervisor.channel(channel, 0)[0] for channel in range(CHANNEL_LIMIT)] == list(range(1, CHANNEL_LIMIT + 1))
    engine.clear_channel(7)
    assert supervisor.channel(7, 0) == (0, 0, 0)
    assert supervisor.channel(6, 0)[0] == 7 and supervisor.channel(8, 0)[0] == 9


def test_a_new_client_does_not_have_the_counts_of_the_one_before_on_its_channel(stats: tuple[Stats, Stats]) -> None:
    engine, supervisor = stats
    at = engine.channel_index(3)
    engine.words[at + ChannelWord.SERVED], engine.words[at + ChannelWord.LAST_NS] = 5, 1000

    assert supervisor.channel(3, 900) == (5, 0, 1000)
    assert supervisor.channel(3, 1001) == (0, 0, 0)


@given(st.lists(st.integers(0, _MINUTE_NS), min_size=1, max_size=200))
def test_percentiles_grow_and_stay_within_what_was_recorded(durations: list[int]) -> None:
    counts = [0] * 240
    for duration in durations:
        counts[bucket_of(duration)] += 1
    distribution = Distribution(tuple(counts))

    found = [distribution.percentile_us(percent) for percent in (1, 50, 90, 99, 99.9, 100)]

    assert all(value is not None for value in found)
    assert found == sorted(found)  # type: ignore[type-var]
    assert found[0] >= lower_ns(bucket_of(min(durations))) / 1000  # type: ignore[operator]
    assert found[-1] <= lower_ns(bucket_of(max(durations)) + 1) / 1000  # type: ignore[operator]


def test_without_a_request_there_is_no_percentile(stats: tuple[Stats, Stats]) -> None:
    assert stats[1].distribution(Stage.TOTAL).percentile_us(50) is None


def test_the_counts_of_two_engines_add_up(stats: tuple[Stats, Stats]) -> None:
    engine, supervisor = stats
    engine.record(1000, 0, 0, 0)
    before = supervisor.distribution(Stage.TOTAL)
    engine.record(1_000_000, 0, 0, 0)

    both = before + supervisor.distribution(Stage.TOTAL)

    assert both.total == 3
    assert [both.counts[bucket_of(1000)], both.counts[bucket_of(1_000_000)]] == [2, 1]


def test_neither_side_can_pull_the_memory_from_under_the_other() -> None:
    descriptor = create_stats_memory()
    try:
        for size in (0, STATS_BYTES - 1, STATS_BYTES + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)
