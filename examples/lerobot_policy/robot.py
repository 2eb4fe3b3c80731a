"""A LeRobot-style control loop: 30 actions a second out of chunks, and the last one held where none is fresh."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from shmserve.client import ActionChunks, NoFreshAction, ShmClient


class SimulatedArm:
    """In place of lerobot's make_robot_from_config(...): the same two methods."""

    joints = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")

    def __init__(self) -> None:
        self._positions = {f"{joint}.pos": 0.0 for joint in self.joints}

    def get_observation(self) -> dict[str, Any]:
        return {**self._positions, "front": np.full((480, 640, 3), 90, np.uint8)}

    def send_action(self, action: dict[str, float]) -> None:
        assert action.keys() == self._positions.keys()
        self._positions = action


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="default", help="the service")
    parser.add_argument("--task", default="pick up the cube")
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--rate", type=float, default=30.0, help="actions a second")
    arguments = parser.parse_args()

    robot = SimulatedArm()
    names = [f"{joint}.pos" for joint in robot.joints]
    period = 1 / arguments.rate
    missed = 0
    with (
        ShmClient(arguments.name) as client,
        ActionChunks(client, steps=20, period=period, max_wait=0.01, prefetch=10, fallback="hold") as chunks,
    ):
        client.reset()
        chunks.step({**robot.get_observation(), "task": arguments.task}, max_wait=10)  # the first chunk is waited for
        beat = time.monotonic()
        for _ in range(arguments.steps):
            try:
                step = chunks.step({**robot.get_observation(), "task": arguments.task})
            except NoFreshAction:
                missed += 1
            else:
                robot.send_action(dict(zip(names, step.action.tolist(), strict=True)))
            beat += period
            time.sleep(max(0.0, beat - time.monotonic()))
        stats = chunks.stats()
    print(f"{arguments.steps} steps from {stats.chunks} chunks, {stats.fallback} held, {missed} missed")
    print("at", {name: round(position, 3) for name, position in robot.get_observation().items() if name != "front"})


if __name__ == "__main__":
    main()
