"""Overlapping rows of two chunks: how they combine, and when they do not."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from shmserve.client import InvalidArgument, InvalidChunk, NoFreshAction
from shmserve.client.action_chunks import ActionChunks, ActionStep
from shmserve.client.chunk_aggregate import Aggregate, aggregate_chunks
from shmserve.client.chunk_rows import Chunk
from shmserve.errors import InferenceFailed
from tests.support.chunk_policy import MS, Clock, Policy, pace
from tests.support.chunk_policy import make as make_chunks


class Planner(Policy):
    """Plans in row i of request n the number 100 n + step, the step for which the row is."""

    def submit(self, observation: Any, **options: Any) -> Any:
        request = super().submit(observation, **options)
        if self.failure is None:
            plan = 100.0 * (len(self.requests) - 1) + observation["step"] + np.arange(self.rows)
            request.answer = {"actions": plan[:, None].astype(np.float32)}
        return request


def make(policy: Policy, **settings: Any) -> ActionChunks:
    """Chunks of eight rows, of which four are executed before the next takes over; each is requested two ahead."""
    return make_chunks(policy, **{"steps": 4, "prefetch": 2, "max_wait": 0.0, "fallback": "hold"} | settings)


def plans(steps: list[ActionStep | NoFreshAction]) -> list[float]:
    return [float(step.action[0]) for step in steps if isinstance(step, ActionStep)]


def test_the_weighted_average_is_lerobots() -> None:
    policy = Planner(Clock(), rows=8)
    steps = pace(make(policy, aggregate="weighted_average"), policy, 8)

    # Request 1 is of step 2. From step 4 on, both chunks have rows for the steps 4 to 7.
    blended = [0.3 * step + 0.7 * (100 + step) for step in range(4, 6)]
    # Request 2 is of step 4, and takes over in step 6: what request 1 left over is itself an average.
    again = [0.3 * (0.3 * step + 0.7 * (100 + step)) + 0.7 * (200 + step) for step in (6, 7)]
    assert plans(steps) == pytest.approx([0, 1, 2, 3, *blended, *again], rel=1e-6)


def test_the_latest_rows_are_those_of_the_new_chunk() -> None:
    policy = Planner(Clock(), rows=8)

    assert plans(pace(make(policy), policy, 8)) == [0, 1, 2, 3, 104, 105, 206, 207]


def test_an_own_function_gets_the_rows_of_one_step() -> None:
    policy = Planner(Clock(), rows=8)
    calls: list[tuple[float, float]] = []

    def record(old: Any, new: Any) -> Any:
        assert type(old) is type(new) is np.ndarray
        assert old.shape == new.shape == (1,) and old.dtype == new.dtype == np.float32
        calls.append((float(old[0]), float(new[0])))
        return np.maximum(old, new)

    steps = pace(make(policy, aggregate=record), policy, 6)

    assert calls == [(step, 100 + step) for step in range(4, 8)]
    assert plans(steps) == [0, 1, 2, 3, 104, 105]


@pytest.mark.parametrize(("period", "period_ms"), [(None, 20.0), (0.02, 5.0)], ids=["counted", "too fast"])
def test_the_rows_of_one_step_meet_however_steps_are_counted(period: float | None, period_ms: float) -> None:
    policy = Planner(Clock(), rows=8)
    pairs: list[float] = []

    def difference(old: Any, new: Any) -> Any:
        pairs.append(float((new - old)[0]))
        return new

    chunks = make(policy, aggregate=difference, period=period, prefetch=1)
    pace(chunks, policy, 5, period_ms=period_ms)

    # Request 1 is of step 3: a row is executed in its step, by its number, and not by the clock alone.
    assert pairs and set(pairs) <= {100.0} if period is None else len(set(pairs)) == 1
    assert chunks.stats().skipped == 0 or period is None


def test_an_executed_row_is_never_combined_again() -> None:
    policy = Planner(Clock(), rows=8)
    executed: list[float] = []
    olds: list[float] = []

    def record(old: Any, new: Any) -> Any:
        olds.append(float(old[0]))
        return new

    chunks = make(policy, aggregate=record)
    for _ in range(30):
        policy.clock.ns += 7 * MS
        before = len(olds)
        step = chunks.step({"step": len(executed)})
        assert not set(olds[before:]) & set(executed)
        executed.append(float(step.action[0]))
    assert olds


def chunk(rows: Any, **facts: Any) -> Chunk:
    total = len(rows["arm"]) if isinstance(rows, dict) else len(rows)
    return Chunk(rows, total, total, "a", 1, 0, 0, **facts)


def test_each_array_of_a_tree_is_combined_and_the_results_own_arrays_stay_as_they_are() -> None:
    old = chunk({"arm": np.zeros((4, 2), np.float32), "grip": np.zeros(4, np.int64), "base": [np.zeros((4, 1))]})
    rows = {"arm": np.ones((4, 2), np.float32), "grip": np.ones(4, np.int64), "base": [np.ones((4, 1))]}
    new = chunk(rows)
    kept = rows["arm"]

    aggregate_chunks("weighted_average", old, 2, new, 1)

    np.testing.assert_allclose(new.rows["arm"], np.array([[1, 1], [0.7, 0.7], [0.7, 0.7], [1, 1]]), rtol=1e-6)
    np.testing.assert_allclose(new.rows["base"][0][:, 0], [1, 0.7, 0.7, 1])
    assert new.rows["arm"].dtype == np.float32
    # A gripper that is open or closed is never half of both.
    np.testing.assert_array_equal(new.rows["grip"], 1)
    np.testing.assert_array_equal(kept, 1)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_the_average_keeps_the_dtype(dtype: str) -> None:
    kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    new = chunk(np.ones((2, 3), kind))

    aggregate_chunks("weighted_average", chunk(np.zeros((2, 3), kind)), 0, new, 0)

    assert new.rows.dtype == kind
    np.testing.assert_allclose(new.rows.astype(float), 0.7, rtol=1e-2)


@pytest.mark.parametrize(
    "old",
    [np.zeros((4, 3), np.float32), np.zeros((4, 2)), {"arm": np.zeros((4, 2), np.float32)}],
    ids=["shape", "dtype", "tree"],
)
def test_chunks_of_different_structures_are_not_combined(old: Any) -> None:
    new = chunk(np.ones((4, 2), np.float32))

    aggregate_chunks("weighted_average", chunk(old), 0, new, 0)

    np.testing.assert_array_equal(new.rows, 1)


def test_a_function_may_return_a_list_or_a_wider_float() -> None:
    for function in (lambda old, new: [0.5, 0.25], lambda old, new: np.array([0.5, 0.25])):
        new = chunk(np.ones((1, 2), np.float32))
        aggregate_chunks(function, chunk(np.zeros((1, 2), np.float32)), 0, new, 0)
        np.testing.assert_array_equal(new.rows, [[0.5, 0.25]])
        assert new.rows.dtype == np.float32


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda old, new: new[:0], r"returned float32\[0\] for a row of float32\[1\]"),
        (lambda old, new: None, "returned None for a row"),
        (lambda old, new: "far", "returned 'far' for a row"),
        (lambda old, new: new * np.nan, r"not finite: \[nan\]"),
        (lambda old, new: new.astype(complex), r"returned complex128\[1\] for a row"),
    ],
)
def test_a_wrong_row_is_left_to_the_fallback(function: Aggregate, message: str) -> None:
    policy = Planner(Clock(), rows=8)
    chunks = make(policy, aggregate=function)
    steps = pace(chunks, policy, 5)

    # The chunk of step 2 could not be combined; its rows are not executed as they are.
    assert plans(steps) == [0, 1, 2, 3, 3]
    last = steps[-1]
    assert isinstance(last, ActionStep) and (last.source, last.fresh) == ("hold", False)
    assert isinstance(last.error, InvalidChunk)
    with pytest.raises(InvalidChunk, match=message):
        raise last.error
    # The next step asks again, and the old plan has a gap then: nothing is left to combine.
    policy.clock.ns += 20 * MS
    assert chunks.step({"step": 5}).fresh


def test_what_an_own_function_raises_is_the_callers() -> None:
    policy = Planner(Clock(), rows=8)

    def fail(old: Any, new: Any) -> Any:
        raise ZeroDivisionError("made to fail")

    chunks = make(policy, aggregate=fail)
    pace(chunks, policy, 4)
    policy.clock.ns += 20 * MS
    with pytest.raises(ZeroDivisionError, match="made to fail"):
        chunks.step({"step": 4})

    # That step had no action: the old plan has a gap, and is not combined again.
    policy.clock.ns += 20 * MS
    assert chunks.step({"step": 5}).fresh


@pytest.mark.parametrize("aggregate", ["average", "", None, 0.5])
def test_an_unknown_aggregate_is_refused(aggregate: Any) -> None:
    with pytest.raises(InvalidArgument, match="one of latest, weighted_average, or a function"):
        make(Policy(Clock()), aggregate=aggregate)


def test_rows_of_another_model_are_not_combined() -> None:
    policy = Planner(Clock(), rows=8)
    chunks = make(policy, aggregate="weighted_average")
    steps = pace(chunks, policy, 2)
    policy.version = "b"
    policy.clock.ns += 20 * MS
    steps += pace(chunks, policy, 3)

    # Request 1, of the step that is the third, is model b's: it takes over as it is.
    assert plans(steps)[:3] == [0, 1, 2]
    assert plans(steps)[3:] == [101, 102]  # its own rows 1 and 2, for an observation numbered 0
    assert {step.version for step in steps[3:] if isinstance(step, ActionStep)} == {"b"}


@pytest.mark.parametrize("fallback", ["hold", "raise"])
def test_a_plan_that_was_interrupted_is_not_combined(fallback: str) -> None:
    policy = Planner(Clock(), rows=8)
    chunks = make(policy, aggregate="weighted_average", prefetch=0, fallback=fallback)
    steps = pace(chunks, policy, 4)
    policy.failure = InferenceFailed("made to fail")
    policy.clock.ns += 20 * MS
    steps += pace(chunks, policy, 1)
    policy.failure = None
    policy.clock.ns += 20 * MS
    found = chunks.step({"step": 5})

    # The robot has stood still in step 4; where the old plan is by now, it is not.
    assert [getattr(step, "source", "raise") for step in steps[4:]] == [fallback]
    assert (float(found.action[0]), found.index) == (205.0, 0)


def test_the_callers_action_is_not_the_chunks_memory() -> None:
    policy = Planner(Clock(), rows=8)
    look = functools.partial(make(policy, aggregate=lambda old, new: new).step)
    for number in range(5):
        step = look({"step": number})
        step.action[:] = -1
        policy.clock.ns += 20 * MS

    assert float(look({"step": 5}).action[0]) == 105.0
