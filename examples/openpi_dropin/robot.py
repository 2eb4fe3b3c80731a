"""openpi's runtime and chunk broker drive an arm for 500 steps; one import line differs from asking openpi's server.

Exit status: 0 each pose was reached, 1 one was not.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from openpi_client import action_chunk_broker
from openpi_client.runtime import environment as _environment
from openpi_client.runtime import runtime as _runtime
from openpi_client.runtime import subscriber as _subscriber
from openpi_client.runtime.agents import policy_agent

# The line that changed. Before: from openpi_client.websocket_client_policy import WebsocketClientPolicy
from shmserve.client.compat.openpi import WebsocketClientPolicy

STEPS = 500
STEPS_PER_GOAL = 100
#: The camera's brightness has 256 values for 3 rad.
REACHED_RAD = 3 / 256


class Arm(_environment.Environment):  # type: ignore[misc]
    """Seven joints that go where they are sent, and a camera that shows where they should be."""

    def __init__(self, reset_pose: list[float]) -> None:
        self._reset_pose = np.array(reset_pose)
        self._random = np.random.default_rng(0)
        self._steps = 0
        self._goal = self._reset_pose
        self.joints = self._reset_pose.copy()
        self.missed_rad: list[float] = []

    def reset(self) -> None:
        self.joints = self._reset_pose.copy()

    def is_episode_complete(self) -> bool:
        return self._steps >= STEPS

    def get_observation(self) -> dict[str, Any]:
        if self._steps % STEPS_PER_GOAL == 0:
            self._goal = self._random.uniform(-1.5, 1.5, 7)
        brightness = np.round((self._goal + 1.5) / 3 * 255).astype(np.uint8)
        image = np.empty((224, 224, 3), np.uint8)
        for bar, value in zip(np.array_split(image, 7, axis=1), brightness, strict=True):
            bar[:] = value
        return {
            "observation/exterior_image_1_left": image,
            "observation/joint_position": self.joints.copy(),
            "prompt": "take the pose in the picture",
        }

    def apply_action(self, action: dict[str, Any]) -> None:
        self.joints = action["actions"]
        self._steps += 1
        if self._steps % STEPS_PER_GOAL == 0:
            self.missed_rad.append(float(np.abs(self.joints - self._goal).max()))


class Timing(_subscriber.Subscriber):  # type: ignore[misc]
    """Collects what openpi's servers report with each action."""

    def __init__(self) -> None:
        self.infer_ms: list[float] = []

    def on_episode_start(self) -> None: ...

    def on_step(self, observation: dict[str, Any], action: dict[str, Any]) -> None:
        self.infer_ms.append(action["server_timing"]["infer_ms"])

    def on_episode_end(self) -> None: ...


def main() -> int:
    """Drive, print what came of it, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="0.0.0.0", help="shm://NAME; a network host means service default")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()

    policy = WebsocketClientPolicy(host=arguments.host, port=arguments.port)
    arm = Arm(policy.get_server_metadata()["reset_pose"])
    timing = Timing()
    _runtime.Runtime(
        environment=arm,
        agent=policy_agent.PolicyAgent(action_chunk_broker.ActionChunkBroker(policy, action_horizon=10)),
        subscribers=[timing],
    ).run()

    print(f"{len(timing.infer_ms)} steps, inference {np.median(timing.infer_ms):.2f} ms (median)")
    print("missed each pose by", ", ".join(f"{missed:.4f}" for missed in arm.missed_rad), "rad")
    return int(len(arm.missed_rad) != STEPS // STEPS_PER_GOAL or max(arm.missed_rad) > REACHED_RAD)


if __name__ == "__main__":
    sys.exit(main())
