"""`shmserve-admin export --lerobot` with the real LeRobot, read back with it. Skipped where lerobot is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmserve.client.recordings.export_source import ExportSource
from shmserve.client.recordings.frames import FrameFinder
from shmserve.client.recordings.lerobot_export import INFO, export_lerobot
from shmserve.client.recordings.new_output import NewOutput
from tests.support.recordings import write_recording

lerobot_dataset = pytest.importorskip(
    "lerobot.datasets.lerobot_dataset", reason="no LeRobot: pip install 'lerobot[dataset]'", exc_type=ImportError
)


def observation(dice: np.random.Generator, number: int) -> dict[str, Any]:
    return {
        "images": {
            "front": dice.integers(0, 256, (48, 64, 3), np.uint8),
            "wrist": dice.integers(0, 256, (3, 32, 40)).astype(np.float32) / 255,
            "depth": dice.integers(0, 65536, (16, 20), np.uint16),
        },
        "state": dice.random(6, np.float32),
        "gripper": float(number),
        "task": f"fold {number % 2}",
    }


@pytest.mark.filterwarnings("ignore")
def test_a_dataset_read_by_lerobot_has_the_same_pictures_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dice = np.random.default_rng(2)
    seen = [observation(dice, number) for number in range(6)]
    requests: list[Any] = [({}, given, {"actions": np.full((5, 6), n, np.float32)}) for n, given in enumerate(seen)]
    requests.insert(4, ({"kind": "reset"}, None, None))
    requests += [({"kind": "reset"}, None, None), ({}, seen[0], {"actions": np.zeros((5, 6), np.float32)})]
    out = tmp_path / "set"

    with (
        ExportSource(write_recording(tmp_path / "a.rec", requests), FrameFinder({}), client=None) as source,
        NewOutput(out, force=False, replaces=INFO) as new,
    ):
        assert export_lerobot(source, new.path, None, None)["skipped"] == 1, "an episode of one frame"
        new.commit()

    found = lerobot_dataset.LeRobotDataset("shmserve/set", root=out)
    assert (found.num_frames, found.num_episodes, found.fps) == (6, 2, 10)
    for number, given in enumerate(seen):
        frame = found[number]
        for name, expected in (
            ("front", given["images"]["front"]),
            ("wrist", np.rint(given["images"]["wrist"] * 255).transpose(1, 2, 0)),
        ):
            picture = frame[f"observation.images.{name}"].numpy().transpose(1, 2, 0)
            np.testing.assert_array_equal(np.rint(picture * 255), expected)
        np.testing.assert_array_equal(frame["observation.depth"].numpy(), given["images"]["depth"])
        np.testing.assert_array_equal(frame["observation.state"].numpy(), given["state"])
        np.testing.assert_array_equal(frame["action"].numpy(), np.full(6, number, np.float32))
        assert (float(frame["observation.gripper"]), frame["task"]) == (number, given["task"])
        assert int(frame["episode_index"]) == number // 4
        assert float(frame["timestamp"]) == pytest.approx(number % 4 / 10)
