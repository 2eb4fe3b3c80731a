"""The retry loop of requests and connections: which step follows which outcome."""

from __future__ import annotations

import asyncio

import pytest

from shmserve.client.request_options import DEFAULT_OPTIONS, RequestOptions
from shmserve.client.retry_loop import RetryStep, RetrySteps, connect_steps, resend_steps, run, run_async
from shmserve.client.retry_policy import RetryPolicy
from shmserve.errors import ServiceRestarted, ServiceStopping, ServiceUnavailable

CONNECT, PAUSE, SEND = RetryStep.CONNECT, RetryStep.PAUSE, RetryStep.SEND
DOWN, RESTARTED, STOPPING = ServiceUnavailable("down"), ServiceRestarted("restarted"), ServiceStopping("stopping")


class Judge:
    """Allows a number of retries, for a model that keeps state or does not."""

    def __init__(self, retries: int, stateful: bool | None) -> None:
        self.retries = retries
        self.stateful = stateful

    def may_retry(self, error: ServiceUnavailable, attempts: int, deadline_ns: int, retry: RetryPolicy) -> bool:
        return attempts <= self.retries

    def may_resend(self, attempts: int, options: RequestOptions, retry: RetryPolicy) -> bool:
        return attempts <= self.retries and self.stateful is False

    def is_stateful(self) -> bool | None:
        return self.stateful


def played(steps: RetrySteps, outcomes: list[ServiceUnavailable | None]) -> list[RetryStep | ServiceUnavailable]:
    """The steps that follow these outcomes, the last the error that ended the loop, if one did."""
    done: list[RetryStep | ServiceUnavailable] = []

    def perform(step: RetryStep) -> ServiceUnavailable | None:
        done.append(step)
        return outcomes.pop(0) if step is not PAUSE else None

    try:
        run(steps, perform)
    except ServiceUnavailable as error:
        done.append(error)
    assert not outcomes
    return done


@pytest.mark.parametrize(
    ("retries", "outcomes", "steps"),
    [
        (0, [None], [CONNECT]),
        (0, [DOWN], [CONNECT, DOWN]),
        (2, [DOWN, DOWN, None], [CONNECT, PAUSE, CONNECT, PAUSE, CONNECT]),
        (1, [DOWN, DOWN], [CONNECT, PAUSE, CONNECT, DOWN]),
    ],
)
def test_a_client_connects_until_its_retries_are_used_up(
    retries: int, outcomes: list[ServiceUnavailable | None], steps: list[RetryStep | ServiceUnavailable]
) -> None:
    loop = connect_steps(Judge(retries, None), 0, RetryPolicy(retries, 0.0))

    assert played(loop, outcomes) == steps


@pytest.mark.parametrize(
    ("failure", "retries", "stateful", "outcomes", "steps"),
    [
        (RESTARTED, 1, False, [None], [SEND]),
        (RESTARTED, 1, True, [], [RESTARTED]),
        (RESTARTED, 0, False, [], [RESTARTED]),
        (RESTARTED, 1, None, [None], [CONNECT, RESTARTED]),
        (STOPPING, 1, True, [None, None], [PAUSE, CONNECT, SEND]),
        (STOPPING, 0, True, [], [STOPPING]),
        (STOPPING, 1, True, [None, RESTARTED], [PAUSE, CONNECT, SEND, RESTARTED]),
        (RESTARTED, 2, False, [RESTARTED, None], [SEND, SEND]),
    ],
)
def test_a_request_is_sent_again_where_that_is_harmless(
    failure: ServiceUnavailable,
    retries: int,
    stateful: bool | None,
    outcomes: list[ServiceUnavailable | None],
    steps: list[RetryStep | ServiceUnavailable],
) -> None:
    loop = resend_steps(Judge(retries, stateful), failure, DEFAULT_OPTIONS, 0, RetryPolicy(retries, 0.0))

    assert played(loop, outcomes) == steps


def test_an_event_loop_performs_the_same_steps() -> None:
    done: list[RetryStep] = []
    outcomes: list[ServiceUnavailable | None] = [DOWN, None, None]

    async def perform(step: RetryStep) -> ServiceUnavailable | None:
        done.append(step)
        await asyncio.sleep(0)
        return outcomes.pop(0)

    asyncio.run(run_async(connect_steps(Judge(1, None), 0, RetryPolicy(1, 0.0)), perform))

    assert done == [CONNECT, PAUSE, CONNECT]
