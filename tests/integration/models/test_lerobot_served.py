"""LeRobot checkpoints behind a real daemon, with a stand-in for LeRobot: state for each robot, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.daemon_process import Daemon
from tests.support.folders import SUPPORT
from tests.support.lerobot_checkpoint import FRONT, STATE, config_of, write_checkpoint


def started(path: Path) -> Daemon:
    daemon = Daemon(path)
    daemon.environment["PYTHONPATH"] = str(SUPPORT / "stand_ins")
    return daemon


def observation(state: float) -> dict[str, Any]:
    return {STATE: np.full(6, state, np.float32), FRONT: np.full((48, 64, 3), 51, np.uint8)}


def test_each_robot_has_the_latest_observations_and_the_queue_of_its_own(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "push", config_of("diffusion", chunk_size=2))
    with started(path) as daemon, daemon.client() as one, daemon.client() as other:

        def action(client: Any, state: float) -> float:
            return float(client.infer(observation(state))["action"][0])

        first = [action(one, 0.0), action(other, 30.0), action(one, 20.0), action(one, 40.0)]
        one.reset()
        after_reset = [action(one, 80.0), action(other, 0.0)]
        status = daemon.status()

    # A chunk of two rows from the mean of the latest two states of that robot.
    assert first == pytest.approx([2.0, 32.0, 4.0, 32.0], rel=1e-5)
    assert after_reset == pytest.approx([82.0, 34.0], rel=1e-5)
    assert status["model"]["contract"]["action"] == {"action": {"dtype": "float32", "shape": [6]}}


def test_a_checkpoint_that_would_move_a_robot_wrongly_does_not_start(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "push", known={STATE: {"mean": np.zeros(6), "std": np.ones(6)}})
    daemon = make_daemon(path)

    assert daemon.run_to_end() == 78
    assert f"{path}/policy_postprocessor.json: action is normalised (MEAN_STD)" in daemon.log
