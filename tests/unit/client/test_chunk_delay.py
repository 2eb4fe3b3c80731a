"""The lead of ActionChunks: learned from the delay of recent chunks, in rows."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmserve.client.action_chunks import ActionStep
from shmserve.client.chunk_delay import PERCENT, WINDOW, ChunkDelay
from shmserve.errors import InferenceFailed, ServiceRestarted
from tests.support.chunk_policy import MS, Clock, Policy, make, pace, rows_of


@given(rows=st.lists(st.integers(0, 60), min_size=1, max_size=100))
def test_all_but_a_few_of_the_recent_chunks_arrived_within_the_delay(rows: list[int]) -> None:
    delay = ChunkDelay()
    delay.add(59, "a")
    for each in rows:
        delay.add(each, "a")

    recent = rows[-WINDOW:]
    assert delay.rows == delay.measured_rows
    assert delay.rows in recent
    assert 100 * sum(each <= delay.rows for each in recent) >= PERCENT * len(recent)
    assert 100 * sum(each < delay.rows for each in recent) < PERCENT * len(recent)


def test_the_first_reply_of_a_connection_or_a_model_does_not_count() -> None:
    delay = ChunkDelay()
    assert (delay.rows, delay.measured_rows) == (0, 0)
    delay.add(50, "a")
    assert (delay.rows, delay.measured_rows) == (50, 0)
    delay.add(3, "a")
    delay.begin_connection()
    delay.add(40, "a")
    delay.add(45, "b")

    assert (delay.rows, delay.measured_rows) == (3, 3)


def sources(steps: list[Any]) -> list[str]:
    return [step.source if isinstance(step, ActionStep) else "none" for step in steps]


def test_a_learned_lead_leaves_no_gap_and_asks_no_earlier_than_it_must() -> None:
    policy = Policy(Clock(), latencies_ms=[90.0, *[35.0] * 50])  # the first one is cold
    chunks = make(policy, fallback="hold")
    steps = pace(chunks, policy, 60)

    # The cold request's five rows are the lead of the second; from then on it is the two rows that 35 ms are.
    assert sources(steps[:5]) == ["none"] * 5 and set(sources(steps[5:])) == {"chunk"}
    assert chunks.lead == 2
    assert [found for found in rows_of(steps) if found[0] == 5] == [(5, row) for row in range(2, 8)]


def test_the_lead_follows_the_service() -> None:
    latencies_ms = [0.0, *[25.0] * 40, *[75.0] * 40, *[25.0] * 80]
    policy = Policy(Clock(), latencies_ms=latencies_ms)
    chunks = make(policy, fallback="hold")
    leads = []
    while len(policy.requests) < len(latencies_ms):
        pace(chunks, policy, 1)
        policy.clock.ns += 20 * MS
        leads.append((len(policy.requests), chunks.lead))

    learned = dict(leads)
    assert learned[40] == 2 and learned[80] == 4 and learned[len(latencies_ms) - 1] == 2


def test_the_lead_is_bounded_by_the_steps() -> None:
    policy = Policy(Clock(), latencies_ms=[0.0, 100.0])
    chunks = make(policy, steps=4, overrun_steps=4, fallback="hold")
    pace(chunks, policy, 40)

    assert chunks.lead == 3


def test_a_given_lead_is_kept() -> None:
    policy = Policy(Clock(), latencies_ms=[65.0])
    chunks = make(policy, prefetch=1, fallback="hold")
    pace(chunks, policy, 40)

    assert chunks.lead == 1


def test_counted_steps_that_wait_need_no_lead() -> None:
    policy = Policy(Clock(), latencies_ms=[500.0])
    chunks = make(policy, period=None, max_wait=10.0)

    assert rows_of(pace(chunks, policy, 24)) == [(request, row) for request in range(3) for row in range(8)]
    assert chunks.lead == 0


def test_a_failed_request_teaches_nothing() -> None:
    policy = Policy(Clock(), latencies_ms=[0.0, 35.0, 35.0, 90.0])
    chunks = make(policy, fallback="hold")
    pace(chunks, policy, 14)
    assert chunks.lead == 2
    policy.failure = InferenceFailed("made to fail")
    pace(chunks, policy, 30)

    assert chunks.lead == 2


def test_the_first_reply_of_a_restarted_service_teaches_nothing() -> None:
    policy = Policy(Clock(), latencies_ms=[0.0, *[35.0] * 3, 0.0, 110.0, 35.0])
    chunks = make(policy, fallback="hold")
    while len(policy.requests) < 4:
        policy.clock.ns += 20 * MS
        chunks.step({})
    assert chunks.lead == 2
    policy.failure = ServiceRestarted("made to fail")
    while len(policy.requests) < 5:
        policy.clock.ns += 20 * MS
        chunks.step({})
    policy.failure = None
    until = time.monotonic() + 60
    while chunks.stats().chunks < 5:
        assert time.monotonic() < until
        # A reconnection takes a thread, and a time that the clock of this test does not know.
        time.sleep(0.0 if chunks._connecting is None else 0.001)
        policy.clock.ns += 20 * MS if chunks._connecting is None else 0
        chunks.step({})

    assert chunks.lead == 2


@pytest.mark.parametrize("cold_ms", [0.0, 100.0])
def test_the_learned_lead_holds_while_the_model_is_changed(cold_ms: float) -> None:
    policy = Policy(Clock(), latencies_ms=[35.0])
    chunks = make(policy, fallback="hold")
    pace(chunks, policy, 40)
    assert chunks.lead == 2
    policy.version = "b"
    policy.latencies_ms = [*[35.0] * len(policy.requests), cold_ms, *[35.0] * 30]
    policy.clock.ns += 20 * MS
    steps = pace(chunks, policy, 60)

    assert chunks.stats().version_changes == 1
    assert chunks.lead == 2
    # Asked two ahead, the first chunk of the new model is late if that is slower once; no later one is.
    late = [number for number, source in enumerate(sources(steps)) if source != "chunk"]
    assert (len(late) == 0) == (cold_ms == 0.0)
    assert late == [late[0] + number for number in range(len(late))]
