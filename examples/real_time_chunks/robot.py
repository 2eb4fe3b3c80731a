"""A point that follows the plans of a policy with real-time chunking, and reports its largest move sideways."""

from __future__ import annotations

import argparse
import time

import numpy as np

from shmserve.client import ActionChunks, NoFreshAction, ShmClient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="default", help="the service")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument(
        "--rate", type=float, default=25.0, help="steps a second; 0: a simulator that waits for its policy"
    )
    arguments = parser.parse_args()

    position = np.array([-1.0, 0.0], np.float32)
    period = 1 / arguments.rate if arguments.rate else None
    sideways, held = 0.0, 0
    with (
        ShmClient(arguments.name) as client,
        ActionChunks(
            client,
            steps=8,
            period=period,
            max_wait=0.0 if period else 10.0,
            # In real time the lead is learned. Without a clock nothing takes time, so it is said.
            prefetch=None if period else 4,
            overrun_steps=8 if period else 0,
            fallback="hold",
        ) as chunks,
    ):
        print("the policy continues chunks:", client.describe()["real_time_chunking"])
        chunks.step({"position": position}, max_wait=10.0)  # the first chunk is waited for
        beat = time.monotonic()
        for _ in range(arguments.steps):
            try:
                step = chunks.step({"position": position})
            except NoFreshAction:
                held += 1
            else:
                held += not step.fresh
                sideways = max(sideways, abs(float(step.action[1] - position[1])))
                position = step.action
            if period:
                beat += period
                time.sleep(max(0.0, beat - time.monotonic()))
        stats, lead = chunks.stats(), chunks.lead
    print(f"{stats.chunks} chunks, each requested {lead} steps ahead, {held} steps without a fresh action")
    print(f"passed the obstacle at {position[0]:.2f}; largest move sideways {sideways:.2f}")


if __name__ == "__main__":
    main()
