"""RetryPolicy: the one rule of every loop that waits for a service."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from shmserve.client.retry_policy import RetryPolicy
from shmserve.errors import ClientEvicted, InvalidArgument, ProtocolMismatch, ServiceUnavailable, ShmServeError


def failing(*errors: ShmServeError) -> Callable[[], str]:
    """An attempt that raises each of these once, and then succeeds."""
    left = list(errors)

    def attempt() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return attempt


def absent(count: int) -> list[ShmServeError]:
    return [ServiceUnavailable(f"no daemon, attempt {number}") for number in range(count)]


def test_an_attempt_that_succeeds_is_made_once() -> None:
    pauses: list[Any] = []

    assert RetryPolicy(3, 0.0).run(failing(), pause=pauses.append) == "done"
    assert pauses == []


def test_an_unavailable_service_is_tried_again_as_often_as_the_policy_allows() -> None:
    pauses: list[Any] = []

    assert RetryPolicy(3, 0.0).run(failing(*absent(3)), pause=pauses.append) == "done"
    assert [str(error) for error in pauses] == [f"no daemon, attempt {number}" for number in range(3)]


def test_the_latest_error_is_raised_when_the_retries_are_used_up() -> None:
    with pytest.raises(ServiceUnavailable, match="attempt 2"):
        RetryPolicy(2, 0.0).run(failing(*absent(9)))


def test_no_retry_is_begun_that_the_deadline_would_end() -> None:
    with pytest.raises(ServiceUnavailable, match="attempt 0"):
        RetryPolicy(math.inf, 60.0).run(failing(*absent(9)), time.monotonic_ns() + 30_000_000_000)


def test_without_a_number_and_a_deadline_the_retries_do_not_end() -> None:
    assert RetryPolicy(math.inf, 0.0).run(failing(*absent(1000)), math.inf) == "done"


def test_an_eviction_ends_the_retries_unless_the_policy_outlasts_bans() -> None:
    evicted = ClientEvicted("out you go")
    assert not RetryPolicy(9, 0.0).allows(evicted, 1, math.inf)
    assert RetryPolicy(9, 0.0, outlasts_bans=True).allows(evicted, 1, math.inf)

    with pytest.raises(ClientEvicted):
        RetryPolicy(9, 0.0).run(failing(evicted))
    assert RetryPolicy(9, 0.0, outlasts_bans=True).run(failing(evicted)) == "done"


def test_an_error_that_time_does_not_mend_is_raised_at_once() -> None:
    with pytest.raises(ProtocolMismatch):
        RetryPolicy(9, 0.0).run(failing(ProtocolMismatch("another version")))


@pytest.mark.parametrize("arguments", [(-1, 0.0), (1.5, 0.0), (1, -1.0), (1, math.nan)])
def test_a_policy_of_meaningless_arguments_is_refused(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidArgument):
        RetryPolicy.of(*arguments)
