"""examples/lerobot_policy with a stand-in for LeRobot, a checkpoint's files, a real daemon and the example's robot."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client import ContractMismatch
from tests.support.daemon_process import Daemon
from tests.support.example_program import output_of
from tests.support.folders import REPOSITORY, SUPPORT
from tests.support.followed_page import snippets
from tests.support.lerobot_checkpoint import JOINTS, config_of, write_checkpoint

EXAMPLE = REPOSITORY / "examples" / "lerobot_policy"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    manifest = (EXAMPLE / "model.toml").read_text()
    config = config_of(size=(480, 640), chunk_size=50)
    path = write_checkpoint(tmp_path_factory.mktemp("lerobot") / "so101", config, manifest=manifest)
    daemon = Daemon(path)
    daemon.environment["PYTHONPATH"] = str(SUPPORT / "stand_ins")
    daemon.start()
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
        facts = client.describe()["metadata"]["lerobot"]

    wanted = 10.0 * 0.2 * np.arange(1, 51)[:, None] + np.array([0, 0, 30.0, 0, 0, 0])
    assert actions.dtype == np.float32
    np.testing.assert_allclose(actions, wanted, rtol=1e-5)
    assert (facts["mode"], facts["chunk_size"], facts["joints"]) == ("chunk", 50, JOINTS)


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


@pytest.mark.long
def test_the_robot_on_the_page_asks_for_a_chunk(tmp_path: Path) -> None:
    (robot,) = [each for each in snippets(REPOSITORY / "docs/how-to/lerobot.md") if each.file == "lerobot_robot.py"]
    (tmp_path / "lerobot_robot.py").write_text(robot.text)
    daemon = Daemon(write_checkpoint(tmp_path / "so101", config_of(size=(480, 640))), name="default")
    daemon.environment["PYTHONPATH"] = str(SUPPORT / "stand_ins")
    with daemon:
        assert output_of(sys.executable, tmp_path / "lerobot_robot.py", daemon=daemon).strip() == "(5, 6)"


def test_the_examples_package_is_the_one_that_its_readme_copies() -> None:
    assert "cp examples/lerobot_policy/model.toml so101/" in (EXAMPLE / "README.md").read_text()
    assert Path(EXAMPLE / "model.toml").is_file()
