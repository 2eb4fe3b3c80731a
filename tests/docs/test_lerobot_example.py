"""examples/lerobot_policy with a stand-in for LeRobot, a checkpoint's files, a real daemon and the example's robot."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.client import ContractMismatch
from tests.support.daemon_process import Daemon
from tests.support.example_program import output_of
from tests.support.folders import REPOSITORY, SUPPORT
from tests.support.packages.saving import loaded

EXAMPLE = REPOSITORY / "examples" / "lerobot_policy"
STAND_INS = SUPPORT / "stand_ins"
JOINTS = [
    f"{name}.pos" for name in ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
]
CONFIG = {
    "type": "act",
    "device": "cuda",
    "chunk_size": 50,
    "input_features": {
        "observation.state": {"type": "STATE", "shape": [6]},
        "observation.images.front": {"type": "VISUAL", "shape": [3, 480, 640]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [6]}},
}
#: State and action are kept in units of 10. A picture needs no statistics.
STATISTICS = {name: {"mean": [0.0] * 6, "std": [10.0] * 6} for name in ("observation.state", "action")}


def package(
    folder: Path, manifest: Callable[[str], str] = lambda text: text, statistics: dict[str, Any] = STATISTICS
) -> Path:
    """The example's package with a checkpoint in it."""
    path = folder / "so101"
    shutil.copytree(EXAMPLE / "model", path)
    (path / "model.toml").write_text(manifest((path / "model.toml").read_text()))
    (path / "checkpoint").mkdir()
    (path / "checkpoint" / "config.json").write_text(json.dumps(CONFIG))
    (path / "checkpoint" / "policy_preprocessor.json").write_text(json.dumps(statistics))
    return path


def start(path: Path) -> Daemon:
    daemon = Daemon(path)
    daemon.environment["PYTHONPATH"] = str(STAND_INS)
    return daemon.start()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = start(package(tmp_path_factory.mktemp("lerobot")))
    try:
        yield daemon
    finally:
        daemon.dismiss()


def observation(**joints: float) -> dict[str, Any]:
    frame = np.full((480, 640, 3), 51, np.uint8)  # 0.2 of 255
    return {**dict.fromkeys(JOINTS, 0.0), **joints, "front": frame, "task": "stack"}


def test_a_chunk_goes_through_the_checkpoints_own_processors(daemon: Daemon) -> None:
    with daemon.client() as client:
        actions = client.infer(observation(**{"elbow_flex.pos": 30.0}))["actions"]

    wanted = 10.0 * 0.2 * np.arange(1, 51)[:, None] + np.array([0, 0, 30.0, 0, 0, 0])
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, wanted, rtol=1e-5)


def test_a_robot_with_another_camera_is_refused_before_it_moves(daemon: Daemon) -> None:
    other = observation()
    other["wrist"] = other.pop("front")[::2]

    with daemon.client() as client, pytest.raises(ContractMismatch, match=r"front: uint8\[480, 640, 3\] -> absent"):
        client.infer(other)


def test_the_examples_robot_drives_the_arm(daemon: Daemon) -> None:
    robot = (sys.executable, EXAMPLE / "robot.py", "--name", daemon.name, "--steps", 30, "--rate", 60)
    output = output_of(*robot, daemon=daemon)

    assert output.startswith("30 steps from ") and "0 missed" in output
    where = ast.literal_eval(output.splitlines()[1].removeprefix("at "))
    # Each row moves on by 2 from where the arm was when its chunk was asked for.
    assert where.keys() == set(JOINTS) and min(where.values()) > 10


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LeRobot in this process."""
    monkeypatch.syspath_prepend(STAND_INS)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "lerobot"]:
        del sys.modules[name]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("missing", ["observation.state", "action"])
def test_a_checkpoint_without_statistics_for_what_it_normalises_is_refused(tmp_path: Path, missing: str) -> None:
    # As of a checkpoint that was made before LeRobot had processors: they are there by other names.
    renamed = {f"so100.buffer.{name}" if name == missing else name: each for name, each in STATISTICS.items()}

    with pytest.raises(ValueError, match=rf"checkpoint: {missing} is normalised \(MEAN_STD\), .* no statistics for it"):
        loaded(package(tmp_path, statistics=renamed))


@pytest.mark.usefixtures("stand_in")
def test_a_frame_of_floats_is_taken_as_it_is(tmp_path: Path) -> None:
    model, _ = loaded(package(tmp_path))
    frame = torch.full((480, 640, 3), 51, dtype=torch.uint8)

    actions = [model.infer([{**observation(), "front": each}])[0]["actions"] for each in (frame, frame / 255)]

    torch.testing.assert_close(actions[0], actions[1])


@pytest.mark.usefixtures("stand_in")
def test_select_action_is_served_from_the_queue_that_the_policy_keeps(tmp_path: Path) -> None:
    seen = {**observation(), "front": torch.full((480, 640, 3), 51, dtype=torch.uint8)}
    model, _ = loaded(package(tmp_path, lambda text: text.replace('answer = "chunk"', 'answer = "action"')))
    actions = [model.infer([seen])[0]["action"] for _ in range(3)]
    model.reset(0)
    again = model.infer([seen])[0]["action"]

    assert [action.tolist() for action in actions] == [pytest.approx([row] * 6) for row in (2.0, 4.0, 6.0)]
    assert again.tolist() == pytest.approx([2.0] * 6)
