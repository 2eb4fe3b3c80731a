"""Sizes that a contract declares are held on both paths; everything that it does not declare may change freely."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

from shmserve.client.connection import Connection
from shmserve.client.contract_check import declared_sizes
from shmserve.client.request_options import DEFAULT_OPTIONS
from shmserve.client.request_pipeline import RequestPipeline
from shmserve.client.retry_policy import RetryPolicy
from shmserve.contract import contract_of
from shmserve.directories import ServicePlace
from shmserve.errors import ContractMismatch
from shmserve.spin import SpinBudget
from tests.support.channel_ends import ChannelEnds, new_pending

EXAMPLE = {
    "state": np.zeros(7, np.float32),
    "image": np.zeros((4, 4, 3), np.uint8),
    "names": ["a", "b"],
    "task": "fold",
}


def model(example: Any, **metadata: Any) -> dict[str, Any]:
    """A model's description, as the daemon gives it."""
    return {
        "name": "m",
        "version": "7",
        "stateful": False,
        "contract": contract_of(example, None),
        "metadata": metadata,
    }


class Robot:
    """A client of a model with a contract; each request is answered at once."""

    def __init__(self, ends: ChannelEnds, description: dict[str, Any]) -> None:
        self.ends = ends
        ends.connection.model = description
        self.pipeline = RequestPipeline("arm", cast(ServicePlace, None), 4, SpinBudget(0), RetryPolicy(0, 0))
        self.pipeline._connector.connection = cast(Connection, ends.connection)
        self.pipeline._table.begin(ends.connection, stateful=False)

    def ask(self, observation: Any) -> bool:
        """Send an observation, as `submit` does; whether it took the fast path."""
        pending = new_pending()
        fast = self.pipeline._try_send(pending, observation, DEFAULT_OPTIONS)
        if not fast:
            assert self.pipeline.try_publish(pending, observation) > 0
            self.pipeline._specialize()
        np.testing.assert_equal(self.ends.request(pending.sequence)[1], observation)
        self.ends.answer(pending.sequence, 1)
        self.pipeline._table.poll()
        return fast

    def refuses(self, observation: Any) -> str:
        """The text of the refusal, which publishes nothing."""
        before, pending = self.ends.engine.requests.published(), new_pending()
        assert not self.pipeline._try_send(pending, observation, DEFAULT_OPTIONS)
        self.ends.connection.asked_ns = 1 << 62  # the description is new
        with pytest.raises(ContractMismatch) as raised:
            self.pipeline.try_publish(pending, observation)
        assert self.ends.engine.requests.published() == before
        return str(raised.value)


@pytest.fixture
def ends() -> Iterator[ChannelEnds]:
    with ChannelEnds() as ends:
        yield ends


def observation(**changed: Any) -> dict[str, Any]:
    extra = {"points": np.zeros((2, 3), np.float32), "note": "n", "scores": [0.5], "step": 1}
    return {**EXAMPLE, **extra, **changed}


def test_a_declared_length_is_refused_when_it_changes(ends: ChannelEnds) -> None:
    robot = Robot(ends, model(EXAMPLE))
    assert [robot.ask(observation()) for _ in range(2)] == [False, True]

    said = robot.refuses(observation(state=np.zeros(8, np.float32)))
    assert "state: float32[7] -> float32[8]" in said
    assert "image" in robot.refuses(observation(image=np.zeros((4, 12, 1), np.uint8)))
    assert robot.ask(observation())


def test_undeclared_entries_and_texts_change_freely_on_the_fast_path(ends: ChannelEnds) -> None:
    robot = Robot(ends, model(EXAMPLE))
    robot.ask(observation())
    for number in range(4):
        changed = {
            "task": "t" * number,
            "note": "ä" * number,
            "points": np.ones((number, 3), np.float32),
            "scores": [1.5] * (number + 1),
            "step": number,
        }
        assert robot.ask(observation(**changed)), changed


def test_a_model_without_a_contract_takes_every_length_on_the_fast_path(ends: ChannelEnds) -> None:
    robot = Robot(ends, {**model(EXAMPLE), "contract": None})
    robot.ask(observation())

    assert robot.ask(observation(state=np.zeros(9, np.float32)))


def test_the_lengths_in_a_gr00t_call_are_held_within_its_observation(ends: ChannelEnds) -> None:
    robot = Robot(ends, model({"state": np.zeros((1, 7), np.float32), "task": ["fold"]}, style="gr00t"))

    def call(size: int, noise: int = 2, task: str = "fold") -> dict[str, Any]:
        inner = {"state": np.zeros((1, size), np.float32), "task": [task], "more": np.zeros(noise)}
        return {"endpoint": "get_action", "data": {"observation": inner, "options": {"noise": np.zeros(noise)}}}

    assert [robot.ask(call(7)) for _ in range(2)] == [False, True]
    assert robot.ask(call(7, noise=5, task="another task"))
    assert "state" in robot.refuses(call(8))
    assert robot.ask({"endpoint": "ping", "data": {}})


@pytest.mark.parametrize(
    ("tree", "declared", "expected"),
    [
        (np.zeros((2, 3)), {"": {"dtype": "float64", "shape": [2, 3]}}, (2, 3)),
        ({"a": [np.zeros(2), np.zeros(3)]}, {"a[1]": {"dtype": "float64", "shape": [3]}}, (-1, 3)),
        ({"a": b"xyz", "b": "text"}, {"a": {"type": "bytes"}, "b": {"type": "str"}}, (-1, -1)),
        ({1: np.zeros(4)}, {"[1]": {"dtype": "float64", "shape": [4]}}, (4,)),
        ({"n": np.float32(1), "m": 2, "e": [], "o": None}, {"n": {"dtype": "float32", "shape": []}}, ()),
        ({"mixed": [1, 2.5], "long": [1 << 70]}, {"mixed": {"type": "list"}}, ()),
    ],
    ids=str,
)
def test_each_size_has_the_declared_length_or_none(
    tree: Any, declared: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert declared_sizes({}, declared, tree) == expected
