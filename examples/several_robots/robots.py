"""Several robots, each a process with a client of its own, share one service; the policy knows them apart."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence

import numpy as np

from shmserve.client import ShmClient


def robot(name: str, number: int, steps: int) -> None:
    """Always in the same state, so that its mean is that state, if nobody else's gets into it."""
    state = np.full(7, number, np.float32)
    with ShmClient(name) as client:
        client.reset()
        for _ in range(steps):
            action = client.infer({"state": state})["action"]
            assert np.allclose(action, number), f"robot {number} got {action}: another one's"
    print(f"robot {number}: {steps} actions, all of them its own", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="default")
    parser.add_argument("--robots", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args(arguments)
    # Not "fork": a client belongs to the process that made it.
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=robot, args=(given.name, number, given.steps)) for number in range(given.robots)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


if __name__ == "__main__":
    raise SystemExit(main())
