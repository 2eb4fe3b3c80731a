"""Requests that leave a staged batch: the others get the answers to their own observations. On the late GPU, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fuzz.echo_model import EchoModel
from shmserve.protocol import Flag, Status
from tests.support.daemon_process import POLICIES
from tests.support.device_engine import Client, DeviceEngine

#: Long enough for a machine that does other things, and waited for.
_SOON_NS = 300_000_000


class Weighted(EchoModel):
    """Gives what tests/support/policies/recordable gives, called."""

    batches = True

    def infer(self, observations: list[Any]) -> list[Any]:
        weights = torch.arange(4.0, device=observations[0]["x"].device)
        return [{"y": observation["x"].sum() * weights} for observation in observations]


@pytest.fixture(scope="module", params=["graph", "called"])
def engine(request: pytest.FixtureRequest) -> Iterator[DeviceEngine]:
    made = DeviceEngine(POLICIES / "recordable" if request.param == "graph" else Weighted())
    yield made
    made.close()


def observation(value: float) -> dict[str, Any]:
    return {"x": np.full((3, 8), value, np.float32)}


def assert_answered(client: Client, sequence: int, value: float) -> None:
    assert client.status(sequence) == Status.OK
    np.testing.assert_allclose(client.reply(sequence)["y"], value * 24 * np.arange(4.0))


def _expires(client: Client) -> int:
    return client.submit(observation(100), deadline_ns=time.monotonic_ns() + _SOON_NS)


def _grows_old(client: Client) -> int:
    return client.submit(observation(100), capture_ns=time.monotonic_ns(), max_age_ns=_SOON_NS)


def _is_cancelled(client: Client) -> int:
    return client.submit(observation(100))


LEAVING: list[tuple[Callable[[Client], int], Status]] = [
    (_expires, Status.EXPIRED),
    (_grows_old, Status.STALE),
    (_is_cancelled, Status.CANCELLED),
]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(("leaving", "status"), LEAVING)
def test_a_request_that_leaves_a_staged_batch_does_not_shift_the_others(
    engine: DeviceEngine, leaving: Callable[[Client], int], status: Status, place: int
) -> None:
    clients = engine.clients
    first = clients[0].submit(observation(5))
    engine.stage()
    assert engine.launch()
    staged = [
        leaving(client) if row == place else client.submit(observation(7 + row)) for row, client in enumerate(clients)
    ]
    engine.stage(ahead=True)
    assert engine.serving.staged == 3

    engine.finish()
    if status == Status.CANCELLED:
        clients[place].channel.requests.cancel(staged[place])
    else:
        time.sleep(_SOON_NS / 1e9)
    joining = clients[0].submit(observation(50))
    engine.stage()
    assert engine.launch()
    engine.finish()

    assert_answered(clients[0], first, 5)
    assert clients[place].status(staged[place]) == status
    for row, client in enumerate(clients):
        if row != place:
            assert_answered(client, staged[row], 7 + row)
    assert_answered(clients[0], joining, 50)


def test_a_request_that_is_cancelled_while_it_is_staged_does_not_run(engine: DeviceEngine) -> None:
    """Its client was told that it did not; copying a large observation takes longer than a client waits to be sure."""
    first, second, _ = engine.clients
    cancelled, kept = first.submit(observation(1)), second.submit(observation(2))
    engine.stage()
    first.channel.requests.cancel(cancelled)

    assert engine.launch()
    engine.finish()

    assert first.status(cancelled) == Status.CANCELLED
    assert_answered(second, kept, 2)


def test_a_request_that_is_cancelled_in_the_moment_in_which_it_is_taken_does_not_run(engine: DeviceEngine) -> None:
    first, second, _ = engine.clients
    cancelled, kept = first.submit(observation(1)), second.submit(observation(2))
    engine.stage()
    replies = first.state.channel.replies
    take = replies.take

    def take_late(sequence: int) -> int:
        first.channel.requests.cancel(sequence)
        assert not first.channel.replies.taken(sequence)
        return take(sequence)

    replies.take = take_late
    try:
        assert engine.launch()
        engine.finish()
    finally:
        replies.take = take

    assert first.status(cancelled) == Status.CANCELLED
    assert_answered(second, kept, 2)


def test_a_newer_request_takes_the_place_of_one_that_waits_and_of_none_that_is_staged(engine: DeviceEngine) -> None:
    first, second, third = engine.clients
    running = first.submit(observation(1))
    engine.stage()
    assert engine.launch()
    staged = [second.submit(observation(2)), third.submit(observation(3))]
    engine.stage(ahead=True)
    older = second.submit(observation(100))
    second.state.look(time.monotonic_ns())
    newer = second.submit(observation(4), flags=Flag.SUPERSEDE)
    engine.finish()
    engine.stage()
    assert engine.launch()
    engine.finish()

    assert second.status(older) == Status.SUPERSEDED
    assert_answered(first, running, 1)
    assert_answered(second, staged[0], 2)
    assert_answered(third, staged[1], 3)
    assert_answered(second, newer, 4)


def test_of_a_staged_batch_all_may_leave(engine: DeviceEngine) -> None:
    first = engine.clients[0].submit(observation(1))
    engine.stage()
    assert engine.launch()
    staged = [(client, client.submit(observation(2))) for client in engine.clients]
    engine.stage(ahead=True)
    for client, sequence in staged:
        client.channel.requests.cancel(sequence)
    engine.finish()

    assert not engine.launch()

    assert [client.status(sequence) for client, sequence in staged] == [Status.CANCELLED] * 3
    later = [(client, client.submit(observation(3 + row))) for row, client in enumerate(engine.clients)]
    engine.run()
    assert_answered(engine.clients[0], first, 1)
    for row, (client, sequence) in enumerate(later):
        assert_answered(client, sequence, 3 + row)


class Counting(EchoModel):
    """Answers with the number of entries of each observation."""

    batches = True

    def infer(self, observations: list[Any]) -> list[Any]:
        return [{"count": len(observation)} for observation in observations]


def test_entries_of_real_time_chunking_do_not_reach_a_policy_that_does_not_declare_them() -> None:
    engine = DeviceEngine(Counting())
    added = {**observation(1), "inference_delay": 2, "prev_chunk_left_over": np.zeros((2, 3), np.float32)}
    sent = [
        engine.clients[0].submit(added, flags=Flag.REAL_TIME_CHUNKING),
        engine.clients[1].submit(added),  # the caller's own
        engine.clients[2].submit(observation(1)),
    ]
    engine.run()

    assert [client.reply(sequence)["count"] for client, sequence in zip(engine.clients, sent, strict=True)] == [1, 3, 1]
    engine.close()
