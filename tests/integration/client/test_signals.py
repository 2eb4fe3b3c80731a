"""Signals: at random instants of every call, and a thousand a second at a client that waits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon_process import Daemon, wait_until
from tests.support.robot_process import Robot

pytestmark = pytest.mark.sealed_too

#: The long form: SHMSERVE_TEST_STORM=20 interrupts as many programs, and each of them longer.
_SEEDS = int(os.environ.get("SHMSERVE_TEST_STORM", "2"))
_ROUNDS = 2000 if _SEEDS == 2 else 8000


@pytest.mark.fault("T26")
@pytest.mark.parametrize("seed", range(1, 1 + _SEEDS))
def test_interrupts_at_random_instants_of_every_call_lose_and_mix_nothing(
    tagged: Daemon, start_robot: Callable[..., Robot], seed: int
) -> None:
    robot = start_robot("storm", tagged, _ROUNDS, seed)
    found = robot.finish()

    interrupts = found.pop("interrupts")
    assert min(interrupts.values()) > _ROUNDS / 200 and sum(interrupts.values()) > _ROUNDS / 8, interrupts
    assert found.pop("more descriptors") <= 2  # a channel that was left is closed with the next wait
    assert found == {"wrong": [], "last": [0, 1, 2], "in_flight": 0, "threads": 1}
    assert robot.errors == ""
    wait_until("every channel was given back", lambda: tagged.status()["clients"] == [])


@pytest.mark.fault("T25")
def test_a_thousand_signals_a_second_at_a_waiting_client_break_nothing(
    obedient: Daemon, start_robot: Callable[..., Robot], tmp_path: Path
) -> None:
    robot = start_robot("jittery", obedient, tmp_path)
    for number in range(3):
        assert robot.says() == f"waits {number}"
        wait_until("the policy is inside", (tmp_path / f"gate{number}.entered").exists)
        wait_until("many signals were handled meanwhile", (tmp_path / f"enough{number + 2}").exists)
        (tmp_path / f"gate{number}").touch()
    found = robot.finish()

    assert found["waited"] == [[True, True]] * 3
    assert found["timed out"][:2] == ["RequestTimeout", True] and found["timed out"][2] > 10
    assert found["right"] == 3000
    assert robot.errors == ""
