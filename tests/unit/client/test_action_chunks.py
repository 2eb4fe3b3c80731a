"""ActionChunks alone: which row of which chunk a step gets. Time and the policy are this file's own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmserve.client import InvalidChunk, NoFreshAction
from shmserve.client.action_chunks import ActionChunks, ActionStep
from shmserve.client.chunk_rows import row_due
from shmserve.client.pending import Reply, RequestTiming
from shmserve.errors import (
    ClientClosed,
    InferenceFailed,
    RequestTimeout,
    ServiceRestarted,
    ServiceUnavailable,
    ShmServeError,
    UnsupportedType,
)

MS = 1_000_000


class Clock:
    """Nanoseconds that pass when a test says so."""

    def __init__(self) -> None:
        self.ns = 1_000_000 * MS

    def __call__(self) -> int:
        return self.ns


class Request:
    """A request to the policy below."""

    deadline_ns = 1 << 62

    def __init__(self, clock: Clock, ready_ns: int, answer: Any, version: str) -> None:
        self.clock = clock
        self.ready_ns = ready_ns
        self.answer = answer
        self.version = version
        self.cancelled = False

    def done(self) -> bool:
        return self.clock.ns >= self.ready_ns

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            wait_ns = self.ready_ns - self.clock.ns if timeout is None else int(timeout * 1e9)
            self.clock.ns = min(self.ready_ns, self.clock.ns + wait_ns)
            if not self.done():
                raise RequestTimeout("not yet")
        if isinstance(self.answer, ShmServeError):
            raise self.answer
        return self.answer

    def cancel(self) -> bool:
        self.cancelled = True
        return not self.done()

    @property
    def reply(self) -> Reply:
        return Reply(self.answer, RequestTiming(0.0, 0.0, 0.0, 0.0, 0.0), self.version, 1, False, False)


class Policy:
    """Chunks whose rows are (request, row), each after a latency of its own; one request at a time or it says so."""

    def __init__(self, clock: Clock, *, rows: int = 64, latencies_ms: list[float] | None = None) -> None:
        self.clock = clock
        self.rows = rows
        self.latencies_ms = latencies_ms or [0.0]
        self.version = "a"
        self.failure: ShmServeError | None = None
        self.observations: list[Any] = []
        self.requests: list[Request] = []
        self.resets = 0
        self.connects: list[ShmServeError | None] = []

    def connect(self, *, timeout: float | None = None) -> None:
        error = self.connects.pop(0) if self.connects else None
        if error is not None:
            raise error

    def submit(
        self,
        observation: Any,
        *,
        timeout: float | None = None,
        capture_time: float | None = None,
        max_age: float | None = None,
    ) -> Request:
        assert all(request.done() for request in self.requests), "one request at a time"
        number = len(self.requests)
        latency_ns = round(self.latencies_ms[number % len(self.latencies_ms)] * MS)
        rows = np.stack([np.full(self.rows, number), np.arange(self.rows)], axis=1).astype(np.float32)
        answer: Any = {"actions": rows} if self.failure is None else self.failure
        self.observations.append(observation)
        self.requests.append(Request(self.clock, self.clock.ns + latency_ns, answer, self.version))
        return self.requests[-1]

    def reset(self, *, timeout: float | None = None) -> None:
        self.resets += 1


def make(policy: Policy, **settings: Any) -> ActionChunks:
    """Steps of 20 ms that wait for nothing, unless the test says otherwise; connected."""
    defaults: dict[str, Any] = {"steps": 8, "period": 0.02, "max_wait": 0.0, "fallback": "raise", "clock": policy.clock}
    chunks = ActionChunks(policy, **{**defaults, **settings})
    chunks._connected = True  # looking for the service takes a thread, and a time that no clock of a test knows
    return chunks


def pace(chunks: ActionChunks, policy: Policy, count: int, period_ms: float = 20.0) -> list[ActionStep | NoFreshAction]:
    """What `count` steps gave, one every period."""
    found: list[ActionStep | NoFreshAction] = []
    began_ns = policy.clock.ns
    for number in range(count):
        policy.clock.ns = max(policy.clock.ns, began_ns + round(number * period_ms * MS))
        try:
            found.append(chunks.step({"step": number}))
        except NoFreshAction as error:
            found.append(error)
    return found


def rows_of(steps: list[ActionStep | NoFreshAction]) -> list[tuple[int, int] | str]:
    """(request, row) of each step, or the source of the fallback."""
    return [
        "none"
        if isinstance(step, NoFreshAction)
        else (int(step.action[0]), int(step.action[1]))
        if step.source == "chunk"
        else step.source
        for step in steps
    ]


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


# When there is none


def outage(policy: Policy, chunks: ActionChunks) -> list[ActionStep | NoFreshAction]:
    """Eight steps with actions, then twelve while every request fails."""
    steps = pace(chunks, policy, 8)
    policy.failure = InferenceFailed("made to fail")
    policy.clock.ns += 20 * MS
    return steps + pace(chunks, policy, 12)


def test_hold_repeats_the_last_action_and_never_calls_it_fresh() -> None:
    policy = Policy(Clock())
    steps = outage(policy, make(policy, fallback="hold"))

    held = [step for step in steps[8:] if isinstance(step, ActionStep)]
    assert len(held) == 12
    for step in held:
        np.testing.assert_array_equal(step.action, [0, 7])
        assert (step.source, step.fresh, step.version, step.index) == ("hold", False, "a", 7)
        assert isinstance(step.error, InferenceFailed)
    assert [round(step.age, 2) for step in held[:3]] == [0.16, 0.18, 0.2]


def test_repeat_last_ends_with_the_age_of_its_observation() -> None:
    policy = Policy(Clock())
    steps = outage(policy, make(policy, fallback="repeat_last", max_age=0.2))

    assert rows_of(steps[8:]) == ["repeat_last"] * 3 + ["none"] * 9
    assert "observation is 0.22 s old, max_age = 0.2; made to fail" in str(steps[11])


def test_zero_has_the_shape_and_the_dtype_of_an_action() -> None:
    policy = Policy(Clock())
    steps = outage(policy, make(policy, fallback="zero"))

    step = steps[8]
    assert isinstance(step, ActionStep)
    np.testing.assert_array_equal(step.action, [0, 0])
    assert (step.action.dtype, step.source, step.version, step.index) == (np.float32, "zero", None, None)


def test_raise_names_what_keeps_chunks_away_and_the_next_step_asks_again() -> None:
    policy = Policy(Clock())
    chunks = make(policy, fallback="raise")
    steps = outage(policy, chunks)

    error = steps[8]
    assert isinstance(error, NoFreshAction) and isinstance(error.__cause__, InferenceFailed)
    assert len(policy.requests) == 13
    policy.failure = None
    policy.clock.ns += 20 * MS
    assert chunks.step({}).fresh


@pytest.mark.parametrize("fallback", ["hold", "repeat_last", "zero", "raise"])
def test_before_the_first_chunk_there_is_nothing_to_repeat(fallback: Any) -> None:
    policy = Policy(Clock(), latencies_ms=[100.0])
    chunks = make(policy, fallback=fallback, max_age=1.0 if fallback == "repeat_last" else None)

    with pytest.raises(
        NoFreshAction, match="no chunk has arrived yet; the next chunk was requested and has not arrived"
    ):
        chunks.step({})


def test_a_fallback_must_be_chosen() -> None:
    with pytest.raises(TypeError, match="fallback"):
        ActionChunks(Policy(Clock()), steps=8, period=0.02, max_wait=0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"prefetch": 8}, "prefetch = 8"),
        ({"overrun_steps": -1}, "overrun_steps = -1"),
        ({"period": 0}, "period = 0"),
        ({"period": float("nan")}, "period = nan"),
        ({"max_wait": -1}, "max_wait = -1"),
        ({"fallback": "nothing"}, "one of hold, repeat_last, zero, raise, not 'nothing'"),
        ({"fallback": "repeat_last"}, "repeat_last needs max_age"),
        ({"fallback": "hold", "max_age": 1}, "repeat_last needs max_age"),
        ({"fallback": "repeat_last", "max_age": float("nan")}, "0 to 86400 seconds"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    defaults: dict[str, Any] = {"steps": 8, "period": 0.02, "max_wait": 0, "fallback": "raise"}
    with pytest.raises(ValueError, match=message):
        ActionChunks(Policy(Clock()), **{**defaults, **settings})


# Other models, other episodes


def test_another_model_ends_the_current_chunk_at_once() -> None:
    policy = Policy(Clock())
    chunks = make(policy, prefetch=6)
    before = pace(chunks, policy, 2)
    policy.version = "b"
    policy.clock.ns += 20 * MS
    after = pace(chunks, policy, 3)

    assert rows_of(before) == [(0, 0), (0, 1)]
    # Asked at row 2 of the old chunk; six of its rows are left, and none is used.
    assert rows_of(after) == [(0, 2), (1, 1), (1, 2)]
    assert [step.version for step in after if isinstance(step, ActionStep)] == ["a", "b", "b"]
    assert chunks.stats().version_changes == 1


def test_the_same_model_finishes_its_chunk_first() -> None:
    policy = Policy(Clock())
    chunks = make(policy, prefetch=6)

    assert rows_of(pace(chunks, policy, 9)) == [*[(0, row) for row in range(8)], (1, 6)]


def test_a_reset_forgets_chunks_the_last_action_and_what_is_out() -> None:
    policy = Policy(Clock(), latencies_ms=[0.0, 70.0])
    chunks = make(policy, prefetch=2, fallback="hold")
    pace(chunks, policy, 7)
    asked = policy.requests[1]

    chunks.reset()

    assert policy.resets == 1
    assert asked.cancelled
    with pytest.raises(NoFreshAction, match="no chunk has arrived yet"):
        chunks.step({})
    assert len(policy.requests) == 2  # never two out at a time
    policy.clock.ns += 80 * MS
    assert rows_of([chunks.step({})]) == [(2, 0)]


# What it is given


def test_actions_may_be_nested_and_found_by_a_function() -> None:
    policy = Policy(Clock())
    chunks = make(policy, actions=lambda answer: {"arm": answer["actions"], "hands": [answer["actions"][:, :1]]})

    step = chunks.step({})

    assert step.action["arm"].shape == (2,)
    assert step.action["hands"][0].shape == (1,)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ("poses", "has no 'poses' but actions"),
        (lambda answer: 3.0, "not of float"),
        (lambda answer: np.float32(1), "not of float32"),
        (lambda answer: [], r"\[\] rows"),
        (lambda answer: answer["actions"][:7], r"steps = 8 rows or more.*\[7\] rows"),
        (lambda answer: (answer["actions"], answer["actions"][:9]), r"\[9, 64\] rows"),
    ],
)
def test_an_answer_without_a_chunk_is_a_typed_error(actions: Callable[[Any], Any] | str, message: str) -> None:
    policy = Policy(Clock())
    chunks = make(policy, actions=actions)

    with pytest.raises(NoFreshAction, match=message) as raised:
        chunks.step({})
    assert isinstance(raised.value.__cause__, InvalidChunk)


def test_an_action_is_the_callers_own() -> None:
    policy = Policy(Clock())
    chunks = make(policy, fallback="hold")
    steps = pace(chunks, policy, 8)
    for step in steps:
        assert isinstance(step, ActionStep)
        step.action[:] = 99
    policy.failure = InferenceFailed("made to fail")
    policy.clock.ns += 20 * MS

    held = chunks.step({})

    np.testing.assert_array_equal(held.action, [0, 7])
    held.action[:] = 99
    np.testing.assert_array_equal(chunks.step({}).action, [0, 7])


# When the service is away


def test_an_observation_that_cannot_be_sent_is_the_callers_to_put_right() -> None:
    class Refusing(Policy):
        def submit(self, observation: Any, **terms: Any) -> Request:
            raise UnsupportedType("observation['camera'] is a socket")

    chunks = make(Refusing(Clock()), fallback="hold")

    with pytest.raises(UnsupportedType, match="socket"):
        chunks.step({})


def test_a_closed_client_is_raised_whatever_the_fallback() -> None:
    policy = Policy(Clock())
    chunks = make(policy, fallback="hold")
    pace(chunks, policy, 8)
    policy.failure = ClientClosed("this client was closed")
    policy.clock.ns += 20 * MS

    with pytest.raises(ClientClosed):
        chunks.step({})


def test_a_service_that_went_away_is_looked_for_until_it_is_back() -> None:
    policy = Policy(Clock(), rows=8)
    chunks = make(policy, fallback="hold", max_wait=5.0)
    pace(chunks, policy, 8)
    policy.connects = [ServiceUnavailable("no daemon"), ServiceUnavailable("no daemon"), None]
    policy.failure = ServiceRestarted("it went away")
    policy.clock.ns += 20 * MS
    original = policy.submit

    def submit(observation: Any, **terms: Any) -> Request:
        request = original(observation, **terms)
        policy.failure = None
        return request

    policy.submit = submit  # type: ignore[method-assign]

    step = chunks.step({})

    assert step.fresh and int(step.action[0]) == 2
    assert policy.connects == []
    assert step.error is None


def test_a_service_that_stays_away_leaves_the_rule_to_decide_and_the_step_in_time() -> None:
    policy = Policy(Clock(), rows=8)
    chunks = make(policy, fallback="hold")
    pace(chunks, policy, 8)
    policy.connects = [ServiceUnavailable("no daemon serves it")] * 10_000
    policy.failure = ServiceRestarted("it went away")
    policy.clock.ns += 20 * MS

    step = chunks.step({})

    assert (step.source, step.fresh) == ("hold", False)
    assert isinstance(step.error, ServiceRestarted)
    chunks.close()
    chunks.close()


def test_stats_are_frozen() -> None:
    stats = make(Policy(Clock())).stats()

    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.fresh = 1  # type: ignore[misc]
