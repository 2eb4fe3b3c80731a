"""The shortest robot: ask, move, ask again."""

import numpy as np

from shmserve.client import ShmClient

joints, goal = np.zeros(6, np.float32), np.full(6, 0.5, np.float32)
with ShmClient() as client:
    for _ in range(100):
        joints += client.infer({"joints": joints, "goal": goal})["action"]
print("the goal is missed by", round(float(abs(joints - goal).max()), 4))
