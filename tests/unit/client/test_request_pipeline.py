"""The pipeline's non-blocking publish: what is sent, and which status says why nothing was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

from shmserve.client.connection import Connection
from shmserve.client.pending import Pending
from shmserve.client.request_options import (
    BACK_PRESSURED,
    DEFAULT_OPTIONS,
    NOT_CONNECTED,
    RESIZE_REQUIRED,
    RequestOptions,
)
from shmserve.client.request_pipeline import RequestPipeline, request_options
from shmserve.client.retry_policy import RetryPolicy
from shmserve.directories import ServicePlace
from shmserve.errors import ClientClosed, InvalidArgument, ReentrantCall, RequestRejected
from shmserve.protocol import Flag, Kind
from shmserve.spin import SpinBudget
from tests.support.channel_ends import ChannelEnds, new_pending


@pytest.fixture
def ends() -> Iterator[ChannelEnds]:
    with ChannelEnds() as ends:
        yield ends


@pytest.fixture
def pipeline(ends: ChannelEnds) -> RequestPipeline:
    pipeline = RequestPipeline("arm", cast(ServicePlace, None), 4, SpinBudget(0), RetryPolicy(0, 0))
    pipeline._connector.connection = cast(Connection, ends.connection)
    pipeline._table.begin(ends.connection, stateful=False)
    return pipeline


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None, None, False, False), DEFAULT_OPTIONS),
        ((None, None, True, False), RequestOptions(Kind.INFER, Flag.SUPERSEDE)),
        ((None, None, True, True), RequestOptions(Kind.INFER, Flag.SUPERSEDE | Flag.REPEATABLE)),
        ((1.5, None, False, True), RequestOptions(Kind.INFER, Flag.REPEATABLE, 1_500_000_000)),
        ((1.5, 0.25, False, False), RequestOptions(Kind.INFER, 0, 1_500_000_000, 250_000_000)),
        ((1.5, 0, False, False), RequestOptions(Kind.INFER, 0, 1_500_000_000, 1)),
    ],
)
def test_the_options_of_a_call_are_nanoseconds_and_flags(arguments: Any, expected: RequestOptions) -> None:
    assert request_options(*arguments) == expected


@pytest.mark.parametrize("max_age", [-1.0, float("nan"), 1e9, "1"])
def test_an_age_that_is_not_one_is_refused(max_age: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_age"):
        request_options(1.5, max_age, supersede=False, repeatable=False)


def test_a_published_request_carries_its_options(pipeline: RequestPipeline, ends: ChannelEnds) -> None:
    pending = new_pending(deadline_ns=1 << 60)
    options = RequestOptions(Kind.INFER, Flag.SUPERSEDE, 5, 6)

    sequence = pipeline.try_publish(pending, {"x": np.arange(3)}, options)

    head, observation = ends.request(sequence)
    assert (head.kind, head.flags, head.capture_ns, head.max_age_ns) == (Kind.INFER, Flag.SUPERSEDE, 5, 6)
    assert (head.deadline_ns, pending.sequence) == (1 << 60, sequence)
    assert observation["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("not attached", NOT_CONNECTED),
        ("shut down", NOT_CONNECTED),
        ("unknown model", NOT_CONNECTED),
        ("resize under way", BACK_PRESSURED),
        ("slots in use", BACK_PRESSURED),
        ("too large", RESIZE_REQUIRED),
    ],
)
def test_a_status_says_why_nothing_was_published(
    pipeline: RequestPipeline, ends: ChannelEnds, reason: str, status: int
) -> None:
    observation: Any = {"x": np.zeros(100_000 if reason == "too large" else 3)}
    match reason:
        case "not attached":
            pipeline._connector.connection = None
        case "shut down":
            ends.connection.closed = True
        case "unknown model":
            ends.connection.model = None
            ends.connection.asked_ns = time.monotonic_ns() - 1_000_000_000
        case "resize under way":
            ends.connection.resizing = True
        case "slots in use":
            for _ in range(4):
                pipeline.try_publish(new_pending(), 1)
    before, pending = ends.engine.requests.published(), new_pending()

    assert pipeline.try_publish(pending, observation) == status

    assert ends.engine.requests.published() == before
    assert (pending.sequence, pending in pipeline._table.in_flight.values()) == (0, False)
    assert (pipeline._connector.capacity.request_bytes >= 800_000) == (reason == "too large")


def test_an_observation_that_cannot_be_read_leaves_its_slot_free(pipeline: RequestPipeline, ends: ChannelEnds) -> None:
    with pytest.raises(RequestRejected):
        pipeline.try_publish(new_pending(), {"generator": (number for number in range(3))})

    assert pipeline._table.in_flight == {}
    assert pipeline.try_publish(new_pending(), 1) > 0


def test_a_call_inside_the_client_is_rejected(pipeline: RequestPipeline) -> None:
    with pipeline._guard.lock, pytest.raises(ReentrantCall):
        pipeline.try_publish(new_pending(), 1)


def test_a_closed_client_publishes_nothing(pipeline: RequestPipeline) -> None:
    pipeline._guard.close()

    with pytest.raises(ClientClosed):
        pipeline.try_publish(new_pending(), 1)


def test_a_request_that_ends_with_an_error_while_its_thread_leads_raises_the_error(
    pipeline: RequestPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lead(path: object, pending: Pending, observation: object, options: object) -> bool:
        pipeline._table.fail(pending, ClientClosed("closed by another thread"))
        return True

    monkeypatch.setattr(pipeline._waiter, "lead", lead)

    with pytest.raises(ClientClosed, match="closed by another thread"):
        pipeline.request({"x": 1}, DEFAULT_OPTIONS, 10**9)
