"""ActionChunks without a usable chunk: fallbacks, resets, other models, errors, and a service that is away."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shmserve.client import InvalidChunk, NoFreshAction
from shmserve.client.action_chunks import ActionChunks, ActionStep
from shmserve.errors import (
    ClientClosed,
    InferenceFailed,
    ServiceRestarted,
    ServiceUnavailable,
    UnsupportedType,
)
from tests.support.chunk_policy import MS, Clock, Policy, Request, make, pace, rows_of

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
