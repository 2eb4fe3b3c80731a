"""What a policy with real-time chunking gets about the chunk that is executed meanwhile."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from shmserve.client import InvalidArgument, NoFreshAction
from shmserve.client.action_chunks import ActionChunks, ActionStep
from shmserve.errors import InferenceFailed, ServiceUnavailable
from tests.support.chunk_policy import MS, Clock, Policy, Request, make, pace, rows_of


class Continuing(Policy):
    """Declares real-time chunking, and counts the observations with its entries by the flag of their requests."""

    def __init__(self, clock: Clock, *, declares: bool = True, **settings: Any) -> None:
        super().__init__(clock, **settings)
        self.declares = {"a": declares}
        self.flagged: list[bool] = []
        self.described = 0
        self.unready = False
        self.updated = ""  # a version that serves by now, though the last reply was another's

    def describe(self, *, timeout: float | None = None) -> dict[str, Any]:
        self.described += 1
        if self.unready:
            raise ServiceUnavailable("no model ready")
        version = self.updated or self.version
        return {"version": version, "real_time_chunking": self.declares.get(version, False)}

    def submit(self, observation: Any, **options: Any) -> Request:
        self.flagged.append(False)
        return super().submit(observation, **options)

    def _submit_continued(self, observation: Any, **options: Any) -> Request:
        request = self.submit(observation, **options)
        self.flagged[-1] = True
        return request


def settle(chunks: ActionChunks) -> None:
    """Wait until the description that was asked for in a thread is there."""
    until = time.monotonic() + 60
    while chunks._connecting is not None and not chunks._connecting.ended:
        assert time.monotonic() < until
        time.sleep(0.001)


def run(chunks: ActionChunks, policy: Policy, count: int, **observation: Any) -> list[Any]:
    """Steps of 20 ms, none before the model is described."""
    found = []
    for number in range(count):
        settle(chunks)
        found += [chunks.step({"step": number, **observation})]
        policy.clock.ns += 20 * MS
    return found


def entries(policy: Policy) -> list[tuple[int, list[list[float]]] | None]:
    """(delay, rows) of each request; None without."""
    return [
        (seen["inference_delay"], seen["prev_chunk_left_over"].tolist()) if "inference_delay" in seen else None
        for seen in policy.observations
    ]


def test_the_rest_of_the_chunk_begins_with_the_row_of_the_observations_step() -> None:
    policy = Continuing(Clock(), rows=10)
    chunks = make(policy, steps=8, prefetch=3, max_wait=10.0)
    steps = run(chunks, policy, 14)

    # Nothing comes before the first chunk. The second is asked for in the step that executes row 5 of 0 to 9.
    first, second, third, *_ = entries(policy)
    assert first is None
    assert second == (3, [[0, row] for row in range(5, 10)])
    assert third == (3, [[1, row] for row in range(5, 10)])
    # Three rows of the rest are executed, and then row 3 of the new chunk: as many as the policy was told.
    assert rows_of(steps)[5:9] == [(0, 5), (0, 6), (0, 7), (1, 3)]
    assert policy.flagged == [False, True, True, True][: len(policy.flagged)]
    assert type(policy.observations[1]["inference_delay"]) is int


@pytest.mark.parametrize("latency_ms", [0.0, 35.0, 55.0, 95.0])
@pytest.mark.parametrize("prefetch", [None, 0, 2, 5])
@pytest.mark.parametrize("period", [0.02, None])
def test_the_delay_is_the_first_row_that_is_executed_of_the_reply(
    latency_ms: float, prefetch: int | None, period: float | None
) -> None:
    policy = Continuing(Clock(), latencies_ms=[latency_ms], rows=20)
    chunks = make(policy, prefetch=prefetch, period=period, overrun_steps=6, fallback="hold", max_wait=0.0)
    chunks._continuation.note(policy.describe())
    joined: dict[int, int] = {}
    for number in range(80):
        try:
            step: Any = chunks.step({"step": number})
        except NoFreshAction:
            step = None
        if step is not None and step.source in ("chunk", "overrun"):
            joined.setdefault(int(step.action[0]), step.index)
        policy.clock.ns += 20 * MS

    told = {number: found[0] for number, found in enumerate(entries(policy)) if found is not None}
    assert len(told) > 3
    # The first two chunks teach the delay.
    assert {number: told[number] for number in told if number > 2 and number in joined} == {
        number: joined[number] for number in joined if number > 2
    }


@pytest.mark.parametrize(
    ("latencies_ms", "settings", "told"),
    [
        # Each chunk arrives for its last executable row, number 5, and the next one is five rows away.
        ([0.0, *[100.0] * 20], {"steps": 4, "overrun_steps": 2, "prefetch": 1}, 1),
        # The first reply was slow; that says nothing about the second.
        ([90.0, *[35.0] * 20], {"steps": 8, "overrun_steps": 8, "prefetch": 3}, 3),
    ],
    ids=["no row beyond the executable ones", "the first reply does not count"],
)
def test_the_delay_counts_rows_that_can_be_executed(
    latencies_ms: list[float], settings: dict[str, Any], told: int
) -> None:
    policy = Continuing(Clock(), latencies_ms=latencies_ms, rows=20)
    chunks = make(policy, fallback="hold", max_wait=0.0, **settings)
    chunks._continuation.note(policy.describe())
    pace(chunks, policy, 60)

    found = [entry[0] for entry in entries(policy) if entry is not None]
    assert found[0] == told and set(found[1:]) == {told}


def test_rows_since_the_capture_of_the_observation_belong_to_the_rest() -> None:
    policy = Continuing(Clock(), rows=12)
    chunks = make(policy, prefetch=3, max_wait=10.0)
    run(chunks, policy, 5)
    chunks.step({"step": 5}, capture_time=policy.clock.ns / 1e9 - 0.04)
    steps = run_on(chunks, policy, 4)

    # Row 0 of the reply is for the time of its observation, two steps before; so is row 0 of the rest.
    assert entries(policy)[1] == (5, [[0, row] for row in range(3, 12)])
    assert rows_of(steps)[-1] == (1, 6)


def run_on(chunks: ActionChunks, policy: Policy, count: int) -> list[Any]:
    found = []
    for _ in range(count):
        policy.clock.ns += 20 * MS
        found.append(chunks.step({"step": -1}))
    return found


def test_a_policy_that_does_not_declare_it_sees_no_entry() -> None:
    policy = Continuing(Clock(), declares=False)
    run(make(policy, prefetch=3, max_wait=10.0), policy, 30)

    assert len(policy.requests) > 3
    assert set(policy.flagged) == {False}
    assert all(seen.keys() == {"step"} for seen in policy.observations)


def test_a_client_without_a_description_sends_no_entry() -> None:
    policy = Policy(Clock())
    pace(make(policy, prefetch=3), policy, 30)

    assert all(seen.keys() == {"step"} for seen in policy.observations)


def test_the_model_is_described_once_for_each_version() -> None:
    policy = Continuing(Clock())
    policy.declares["b"] = True
    chunks = make(policy, prefetch=3, max_wait=10.0)
    run(chunks, policy, 20)
    assert policy.described == 1
    policy.version = "b"
    run(chunks, policy, 20)

    assert policy.described == 2


def test_a_service_that_has_no_model_yet_is_asked_again() -> None:
    policy = Continuing(Clock())
    policy.unready = True
    chunks = make(policy, prefetch=3, max_wait=10.0)
    run(chunks, policy, 7)
    assert policy.flagged == [False, False]
    policy.unready = False
    run(chunks, policy, 10)

    assert policy.flagged[2:] and policy.flagged[-1]


@pytest.mark.parametrize("declares", [True, False])
def test_a_new_model_gets_no_rows_of_the_old_one(declares: bool) -> None:
    policy = Continuing(Clock(), rows=10)
    policy.declares["b"] = declares
    chunks = make(policy, prefetch=3, max_wait=10.0)
    run(chunks, policy, 9)
    before = len(policy.requests)
    policy.version = "b"
    run(chunks, policy, 30)

    # The request in which the change is noticed was sent for the old model. The engine takes the entries out again if
    # the new one does not declare them.
    assert policy.requests[before].version == "b" and policy.flagged[before]
    assert policy.flagged[before + 1 :] == [declares] * len(policy.flagged[before + 1 :])
    for found in entries(policy)[before + 1 :]:
        assert found is None or all(policy.requests[int(row[0])].version == "b" for row in found[1])


def test_rows_of_a_model_that_was_replaced_meanwhile_are_not_sent() -> None:
    policy = Continuing(Clock(), rows=10)
    policy.declares["b"] = True
    policy.updated = "b"
    run(make(policy, prefetch=3, max_wait=10.0), policy, 30)

    # Replies are still from a; requests will be answered by b.
    assert len(policy.flagged) > 3 and not any(policy.flagged)


def test_a_plan_with_a_gap_is_not_continued() -> None:
    policy = Continuing(Clock(), rows=20)
    chunks = make(policy, prefetch=0, max_wait=10.0, fallback="hold")
    run(chunks, policy, 8)
    policy.failure = InferenceFailed("made to fail")
    held = run(chunks, policy, 1)
    policy.failure = None
    run(chunks, policy, 1)

    assert held[0].source == "hold"
    assert policy.flagged == [False, False, False]


def test_a_reset_leaves_nothing_to_continue() -> None:
    policy = Continuing(Clock())
    chunks = make(policy, prefetch=3, max_wait=10.0)
    run(chunks, policy, 7)
    chunks.reset()
    run(chunks, policy, 1)

    assert policy.flagged == [False, True, False]


def test_a_tree_of_actions_is_sent_as_it_is() -> None:
    policy = Continuing(Clock(), rows=10)
    chunks = make(
        policy,
        prefetch=3,
        max_wait=10.0,
        actions=lambda answer: {"arm": answer["actions"], "more": [answer["actions"][:, 0]]},
    )
    run(chunks, policy, 7)

    left_over = policy.observations[1]["prev_chunk_left_over"]
    assert left_over["arm"].shape == (5, 2) and left_over["more"][0].shape == (5,)


def test_combined_rows_are_what_is_left_over() -> None:
    policy = Continuing(Clock(), rows=10)
    chunks = make(policy, steps=4, prefetch=1, max_wait=10.0, aggregate=lambda old, new: old)
    run(chunks, policy, 8)

    # Request 1 is of step 3; in step 6 its rows 3 and on are executed, of which 0 to 6 have the old chunk's numbers.
    third = policy.observations[2]["prev_chunk_left_over"]
    np.testing.assert_array_equal(third[:, 1], [6, 7, 8, 9, 7, 8, 9])


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ([0.5], "must be a dict to which inference_delay and prev_chunk_left_over can be added, not list"),
        ({"inference_delay": 3}, "the observation has inference_delay, which ActionChunks adds"),
    ],
)
def test_an_observation_that_cannot_be_continued_is_refused(observation: Any, message: str) -> None:
    policy = Continuing(Clock())
    chunks = make(policy, prefetch=3, max_wait=10.0)
    run(chunks, policy, 5)

    with pytest.raises(InvalidArgument, match=message):
        chunks.step(observation)
    assert isinstance(chunks.step({"step": 6}), ActionStep)


def test_the_callers_observation_is_not_changed() -> None:
    policy = Continuing(Clock())
    chunks = make(policy, prefetch=3, max_wait=10.0)
    run(chunks, policy, 5)
    mine = {"step": 5}
    chunks.step(mine)

    assert policy.flagged[-1] and mine == {"step": 5}
