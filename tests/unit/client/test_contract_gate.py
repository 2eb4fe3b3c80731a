"""The gate between a model's results and the robot: withheld until its contract agrees, without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

from shmserve.client.connection import Connection
from shmserve.client.model_unchecked import ModelUnchecked
from shmserve.client.pending import Pending
from shmserve.client.request_pipeline import RequestPipeline
from shmserve.client.retry_policy import RetryPolicy
from shmserve.directories import ServicePlace
from shmserve.errors import ContractMismatch, ReentrantCall, ServiceRestarted, ServiceUnavailable
from shmserve.robot_contract import RobotContract
from shmserve.spin import SpinBudget
from tests.support.channel_ends import ChannelEnds, new_pending

_SEEN = {"state": np.zeros(3, np.float32)}


def model(version: int, units: str | None = "deg") -> dict[str, Any]:
    """The daemon's description of a model with these units."""
    contract: dict[str, Any] = {"observation": None, "action": None}
    if units is not None:
        contract["meaning"] = {"observation": {"state": {"units": units}}}
    return {"name": "m", "version": f"{version:x}", "stateful": False, "contract": contract, "metadata": {}}


class Robot:
    """A client whose robot works with degrees; the test is daemon and engine."""

    def __init__(self, ends: ChannelEnds) -> None:
        self.ends = ends
        #: What the daemon describes, one after the other; the last one stays. An exception is raised.
        self.described: list[dict[str, Any] | Exception] = []
        ends.connection.model = model(7)
        ends.connection.refresh_model_info = self._describe  # type: ignore[attr-defined]
        robot = RobotContract({"observation": {"state": {"units": "deg"}}})
        place = cast(ServicePlace, None)
        self.pipeline = RequestPipeline("arm", place, 4, SpinBudget(0), RetryPolicy(0, 0), robot=robot)
        self.pipeline._connector.connection = cast(Connection, ends.connection)
        self.pipeline._table.begin(ends.connection, stateful=False)

    def _describe(self, timeout_s: float) -> None:
        found = self.described.pop(0) if len(self.described) > 1 else self.described[0]
        if isinstance(found, Exception):
            raise found
        self.ends.connection.model = found

    def send(self) -> Pending:
        pending = new_pending(self.pipeline.control)
        assert self.pipeline.try_publish(pending, _SEEN) > 0
        return pending

    def answered(self, version: int) -> Pending:
        """A request that a model of this version has answered."""
        pending = self.send()
        self.ends.answer(pending.sequence, 1, version=version)
        self.pipeline._table.poll()
        return pending


@pytest.fixture
def robot() -> Iterator[Robot]:
    ends = ChannelEnds()
    try:
        yield Robot(ends)
    finally:
        ends.engine.close()
        ends.channel.close()
        ends._sealed.close()


def test_a_result_of_the_model_that_was_compared_is_given_at_once(robot: Robot) -> None:
    assert robot.answered(7).result() == 1
    assert not robot.described


def test_a_result_of_another_version_is_withheld_until_that_is_described(robot: Robot) -> None:
    robot.send()
    robot.described = [model(7), model(8)]  # the engine serves a moment before the daemon describes its model

    pending = robot.answered(8)

    assert pending.done() and type(pending._error) is ModelUnchecked
    assert pending.reply is not None and pending.reply.action is None
    assert pending.result() == 1 and pending.reply.action == 1
    robot.described = []
    assert robot.answered(8).result() == 1, "it is known now"


def test_a_result_of_a_model_that_differs_is_never_given(robot: Robot) -> None:
    robot.described = [model(8, "rad")]
    pending = robot.answered(8)

    for _ in range(2):
        with pytest.raises(ContractMismatch, match="units: rad -> deg"):
            pending.result()
    assert isinstance(pending.exception(), ContractMismatch)
    assert pending.reply is not None and pending.reply.action is None
    with pytest.raises(ContractMismatch):
        robot.send()


def test_a_model_that_was_replaced_before_it_was_described_is_refused(robot: Robot) -> None:
    robot.described = [model(9)]
    pending = robot.answered(8)
    pending.deadline_ns = 1

    with pytest.raises(ContractMismatch, match="answered, and is served no more"):
        pending.result()


def test_a_daemon_that_goes_away_leaves_a_request_that_may_be_sent_again(robot: Robot) -> None:
    robot.described = [ServiceUnavailable("the daemon closed the connection")]
    pending = robot.answered(8)

    with pytest.raises(ServiceRestarted, match=r"could not be compared with robot=.*closed the connection"):
        pending.result()


def test_an_interrupted_comparison_decides_nothing(robot: Robot) -> None:
    robot.described = [ReentrantCall("in the middle of a step"), model(8)]
    pending = robot.answered(8)

    with pytest.raises(ReentrantCall):
        pending.result()
    assert pending.result() == 1


def test_a_model_that_states_nothing_is_accepted(robot: Robot) -> None:
    robot.described = [model(8, None)]

    assert robot.answered(8).result() == 1


def test_a_new_connection_begins_without_accepted_versions(robot: Robot) -> None:
    assert robot.answered(7).result() == 1
    robot.pipeline._table.begin(robot.ends.connection, stateful=False)
    assert robot.pipeline._table.accepted == set()


def test_the_models_of_a_link_are_known_by_its_description(robot: Robot) -> None:
    robot.described = [{**model(8), "remote": {"version": "a0", "fallback_version": "b0"}}]

    assert [robot.answered(version).result() for version in (0xA0, 0xB0, 8)] == [1, 1, 1]
