"""A loop as GR00T's deployment examples have it; one import line differs from asking GR00T's ZeroMQ server.

Exit status: 0 each pose was reached, 1 one was not.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

# The line that changed. Before: from gr00t.policy.server_client import PolicyClient
from shmserve.client.compat.gr00t import PolicyClient

EPISODES = 4
CHUNKS_PER_EPISODE = 12
#: Of the 16 rows of a chunk.
EXECUTED = 8
#: The camera's brightness has 256 values for 3 rad.
REACHED_RAD = 3 / 256


def observe(joints: npt.NDArray[np.float32], goal: npt.NDArray[np.float64]) -> dict[str, Any]:
    """What the robot sees: one frame with a bar for each joint, its joints, its task."""
    frame = np.empty((1, 1, 480, 640, 3), np.uint8)
    for bar, value in zip(np.array_split(frame, len(goal), axis=3), np.round((goal + 1.5) / 3 * 255), strict=True):
        bar[:] = np.uint8(value)
    return {
        "video": {"front": frame},
        "state": {"single_arm": joints[None, None]},
        "language": {"annotation.human.task_description": [["take the pose in the picture"]]},
    }


def main() -> int:
    """Drive, print what came of it, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="localhost", help="shm://NAME; a network host means service default")
    parser.add_argument("--port", type=int, default=5555)
    arguments = parser.parse_args()

    policy = PolicyClient(host=arguments.host, port=arguments.port, strict=True)
    if not policy.ping():
        print("the policy server is not there", file=sys.stderr)
        return 1
    print("the policy gives", policy.get_modality_config()["action"].modality_keys)
    random = np.random.default_rng(0)
    missed_rad = []
    for _ in range(EPISODES):
        print("episode", policy.reset()["episode"])
        joints = np.zeros(5, np.float32)
        goal = random.uniform(-1.5, 1.5, 5)
        for _ in range(CHUNKS_PER_EPISODE):
            action, _info = policy.get_action(observe(joints, goal))
            for step in range(EXECUTED):
                joints = action["single_arm"][0, step]
        missed_rad.append(float(np.abs(joints - goal).max()))
    policy.close()

    print("missed each pose by", ", ".join(f"{missed:.4f}" for missed in missed_rad), "rad")
    return int(max(missed_rad) > REACHED_RAD)


if __name__ == "__main__":
    sys.exit(main())
