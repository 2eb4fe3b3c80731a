"""Model packages of one policy for joints, a point cloud and a camera, which differ in what they state of the numbers."""

from __future__ import annotations

from pathlib import Path

_POLICY = '''\
"""Gives each joint's number back for 16 steps, and the number of points."""

import numpy as np


class Policy:
    def __init__(self, path, device):
        self.runs = 0

    def example_observation(self):
        return {
            "state": np.array([0.5, 1.0, 2.0], np.float32),
            "points": np.zeros((5, 3), np.float32),
            "camera": np.zeros((4, 6, 3), np.uint8),
        }

    def infer(self, observation):
        self.runs += 1
        actions = observation["state"].new_ones(16, 1) * observation["state"]
        return {"actions": actions, "points": len(observation["points"]), "runs": self.runs}
'''

_MODEL = '[model]\nname = "joints"\n'

#: What a package states unless a test says otherwise.
STATED = """\
[contract]
rate_hz = 50
action_horizon = 16

[contract.observation]
points = [-1, 3]
state = { units = "UNITS", names = ["pan", "lift", "grip"] }
camera = { frame_size = [4, 6], colour_order = "rgb" }

[contract.action.actions]
units = "UNITS"
names = ["pan", "lift", "grip"]
"""


def joint_package(folder: Path, name: str, contract: str = "") -> Path:
    """A package in `folder`, with these tables in its model.toml."""
    path = folder / name
    path.mkdir(parents=True)
    (path / "policy.py").write_text(_POLICY)
    (path / "model.toml").write_text(_MODEL + contract)
    return path
