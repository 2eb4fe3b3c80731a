"""ActionChunks alone: which row of which chunk a step gets. Time and the policy are this file's own."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmserve.client import NoFreshAction
from shmserve.client.action_chunks import ActionStep
from shmserve.client.chunk_rows import row_due
from shmserve.errors import (
    InferenceFailed,
    RequestTimeout,
)
from tests.support.chunk_policy import MS, Clock, Policy, make, pace, rows_of

# Which row


def test_without_latency_every_row_is_executed_once_as_openpis_broker_does() -> None:
    policy = Policy(Clock(), rows=8)
    steps = pace(make(policy), policy, 24)

    assert rows_of(steps) == [(request, row) for request in range(3) for row in range(8)]
    assert [observation["step"] for observation in policy.observations] == [0, 8, 16]


def test_a_chunk_that_comes_late_is_joined_where_the_time_is() -> None:
    policy = Policy(Clock(), latencies_ms=[50.0])
    chunks = make(policy, max_wait=0.5)

    step = chunks.step({"step": 0})

    # 50 ms after the observation, rows 0 and 1 (0 and 20 ms) have passed; row 2 is for 40 ms, row 3 for 60 ms.
    assert (step.index, step.fresh, step.source) == (3, True, "chunk")
    assert step.age == pytest.approx(0.05)
    assert chunks.stats().skipped == 3


def test_prefetched_chunks_follow_one_another_without_a_gap() -> None:
    policy = Policy(Clock(), latencies_ms=[35.0])
    chunks = make(policy, prefetch=3)

    found = rows_of(pace(chunks, policy, 20))

    # Asked at row 5 of 8, so the next is joined at row 3; the first has nothing to be hidden behind.
    assert found[:2] == ["none", "none"]
    assert found[2:] == [
        *[(0, row) for row in range(2, 8)],
        *[(1, row) for row in range(3, 8)],
        *[(2, row) for row in range(3, 8)],
        (3, 3),
        (3, 4),
    ]


def test_overrun_rows_are_executed_while_the_next_chunk_is_late_and_are_not_fresh() -> None:
    policy = Policy(Clock(), latencies_ms=[0.0, 50.0])
    chunks = make(policy, steps=4, overrun_steps=2, fallback="hold")

    steps = pace(chunks, policy, 8)

    assert rows_of(steps) == [*[(0, row) for row in range(4)], "overrun", "overrun", "hold", (1, 3)]
    assert [step.index for step in steps[4:6] if isinstance(step, ActionStep)] == [4, 5]
    assert not any(step.fresh for step in steps[4:7] if isinstance(step, ActionStep))


def test_overrun_rows_are_not_executed_when_the_next_chunk_has_arrived() -> None:
    policy = Policy(Clock())
    chunks = make(policy, steps=4, overrun_steps=4, prefetch=1)

    assert rows_of(pace(chunks, policy, 8)) == [
        *[(0, row) for row in range(4)],
        *[(1, row) for row in range(1, 4)],
        (2, 1),
    ]


def test_a_chunk_whose_time_has_passed_is_not_used_and_the_step_says_so() -> None:
    policy = Policy(Clock(), latencies_ms=[200.0])
    chunks = make(policy, steps=4)

    steps = pace(chunks, policy, 12)

    assert rows_of(steps) == ["none"] * 12
    errors = [step for step in steps if isinstance(step, NoFreshAction) and "past the time of its" in str(step)]
    assert errors and isinstance(errors[0].__cause__, RequestTimeout)
    assert "arrived 0.2 s after its observation" in str(errors[0])
    assert chunks.stats().late_chunks == 1


def test_counted_calls_ignore_the_clock() -> None:
    policy = Policy(Clock(), rows=8)
    chunks = make(policy, period=None)

    assert rows_of(pace(chunks, policy, 16, period_ms=700.0)) == [
        (request, row) for request in range(2) for row in range(8)
    ]


def test_a_loop_that_is_too_fast_does_not_get_a_row_twice() -> None:
    policy = Policy(Clock())
    chunks = make(policy)

    assert rows_of(pace(chunks, policy, 16, period_ms=5.0)) == [
        (request, row) for request in range(2) for row in range(8)
    ]


def test_an_observation_captured_earlier_moves_the_chunk() -> None:
    policy = Policy(Clock())
    chunks = make(policy)

    step = chunks.step({}, capture_time=policy.clock.ns / 1e9 - 0.045)

    assert step.index == 2
    assert step.age == pytest.approx(0.045)


def test_a_function_is_called_for_the_observation_only_when_one_is_asked_for() -> None:
    policy = Policy(Clock())
    chunks = make(policy)
    calls: list[int] = []

    def look(number: int) -> dict[str, int]:
        calls.append(number)
        return {"step": number}

    for number in range(9):
        policy.clock.ns += 20 * MS
        chunks.step(functools.partial(look, number))

    assert calls == [0, 8]


@given(
    steps=st.integers(1, 12),
    overrun=st.integers(0, 4),
    data=st.data(),
    latencies_ms=st.lists(st.floats(0, 400), min_size=1, max_size=6),
    jitter_ms=st.lists(st.floats(-9, 30), min_size=1, max_size=12),
    swaps=st.sets(st.integers(0, 60), max_size=3),
    failures=st.sets(st.integers(0, 60), max_size=8),
    fallback=st.sampled_from(["hold", "repeat_last", "zero", "raise"]),
)
def test_no_step_gets_a_row_whose_time_has_passed_nor_one_row_twice(
    steps: int,
    overrun: int,
    data: st.DataObject,
    latencies_ms: list[float],
    jitter_ms: list[float],
    swaps: set[int],
    failures: set[int],
    fallback: Any,
) -> None:
    period_ns = 20 * MS
    policy = Policy(Clock(), latencies_ms=latencies_ms)
    chunks = make(
        policy,
        steps=steps,
        overrun_steps=overrun,
        prefetch=data.draw(st.integers(0, steps - 1), "prefetch"),
        fallback=fallback,
        max_age=0.3 if fallback == "repeat_last" else None,
    )
    captured: dict[int, int] = {}  # by request
    used: dict[int, int] = {}  # the last row, by request
    last: ActionStep | None = None
    versions: list[str] = []
    for number in range(60):
        policy.clock.ns += period_ns + round(jitter_ms[number % len(jitter_ms)] * MS)
        if number in swaps:
            policy.version = chr(ord(policy.version) + 1)
        policy.failure = InferenceFailed("made to fail") if number in failures else None
        out = len(policy.requests)
        try:
            step = chunks.step({"step": number})
        except NoFreshAction as error:
            assert last is None or fallback in ("raise", "repeat_last")
            if fallback == "repeat_last" and last is not None:
                assert "max_age" in str(error)
            continue
        finally:
            for request in range(out, len(policy.requests)):
                captured[request] = policy.clock.ns
        if step.source in ("chunk", "overrun"):
            request, row = int(step.action[0]), int(step.action[1])
            elapsed_ns = policy.clock.ns - captured[request]
            assert row == step.index == max(row_due(elapsed_ns, period_ns), used.get(request, -1) + 1)
            assert 2 * (row * period_ns - elapsed_ns) >= -period_ns
            assert row < steps + overrun
            assert step.fresh == (step.source == "chunk") == (row < steps)
            assert policy.requests[request].done()
            assert step.age == elapsed_ns / 1e9
            assert request >= max(used, default=0)
            used[request] = row
            assert step.version == policy.requests[request].version
            versions.append(step.version)
            last = step
        else:
            assert last is not None
            assert (step.source, step.fresh) == (fallback, False)
            assert step.age >= last.age
            np.testing.assert_array_equal(step.action, last.action * (fallback != "zero"))
            if fallback == "repeat_last":
                assert step.age <= 0.3
    assert versions == sorted(versions)
    stats = chunks.stats()
    assert stats.fresh + stats.overrun + stats.fallback + stats.raised == 60
