"""Forked children: refused whatever they try, and the parent's requests, loans and threads go on as if nothing was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from shmserve.client import ShmClient
from tests.support.daemon_process import Daemon, is_running, wait_until
from tests.support.gate import Gate
from tests.support.robot_process import Robot

pytestmark = pytest.mark.sealed_too

_REFUSED = "ClientForked: this client belongs to the parent process: make a new ShmClient after the fork"
_ON_VIOLATION = {
    "write to a loan": "ValueError: assignment destination is read-only",
    "its own": "answered 'obedient'",
}


@pytest.mark.fault("T49")
@pytest.mark.parametrize("leave", ["_exit", "sys.exit", "multiprocessing"])
def test_a_child_forked_in_the_middle_of_everything_is_refused_and_the_parent_goes_on(
    obedient: Daemon, gate: Gate, start_robot: Callable[..., Robot], leave: str
) -> None:
    robot = start_robot("forked", obedient, gate.path, leave)
    found = robot.finish()

    for heard, status in found.pop("children"):
        assert heard == {way: _ON_VIOLATION.get(way, _REFUSED) for way in heard}
        assert len(heard) == 20 and status == 0
    assert found == {
        "held": True,
        "settled": "settled",
        "later": "later",
        "loan": [3, 1, 4, 1],
        "after": [0, 1, 2, 3, 4],
        "busy": [True, []],
        "number": 11,
    }
    assert robot.errors == ""
    wait_until("every channel was given back", lambda: obedient.status()["clients"] == [])


@pytest.mark.fault("T49")
def test_a_child_that_outlives_its_parent_does_not_keep_the_channel(
    obedient: Daemon, start_robot: Callable[..., Robot]
) -> None:
    robot = start_robot("orphan", obedient)
    found = robot.says()
    assert found["answer"] == 1

    robot.process.kill()
    robot.process.wait()

    wait_until("its channel was given back", lambda: obedient.status()["clients"] == [])
    assert is_running(found["child"])


def test_objects_bound_to_a_process_cannot_be_sent_to_another(client: ShmClient) -> None:
    things: list[Any] = [client, client.submit({"do": "echo", "value": 1}), client.loan({"do": "count"})]
    for thing in things:
        for carry in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="stay in their process: make a ShmClient in each"):
                carry(thing)

    del things, thing  # with the loan, for which nobody else gets the slot
    assert client.infer({"do": "echo", "value": 2}) == 2
