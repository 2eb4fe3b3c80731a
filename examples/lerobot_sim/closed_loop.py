"""Drives the simulated arm at 30 Hz with chunks, from a service or from the same policy in this process."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from arm import Arm
from make_policy import EXECUTED

from shmserve.client import ActionChunks, ShmClient

#: The next chunk is requested this many steps before the current one ends.
PREFETCH = 3


class InProcess:
    """LeRobot's policy in this process, with the calls of a client that ActionChunks needs."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
        from lerobot.policies.utils import prepare_observation_for_inference

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))  # as the engine: others round differently
        config = PreTrainedConfig.from_pretrained(str(checkpoint))
        policy = get_policy_class(config.type).from_pretrained(str(checkpoint), config=config)
        before, after = make_pre_post_processors(config, pretrained_path=str(checkpoint))

        def infer(observation: dict[str, Any]) -> dict[str, Any]:
            with torch.inference_mode():
                batch = before(prepare_observation_for_inference(dict(observation), torch.device("cpu"), "", ""))
                chunk = policy.predict_action_chunk(batch)
                return {"actions": torch.cat([after(chunk[:, row]) for row in range(chunk.shape[1])]).numpy()}

        self._infer: Callable[[dict[str, Any]], dict[str, Any]] = infer

    def connect(self, *, timeout: float | None = None) -> None:
        pass

    def reset(self, *, timeout: float | None = None) -> None:
        pass

    def submit(self, observation: dict[str, Any], **options: Any) -> _Done:
        return _Done(self._infer(observation))


class _Done:
    """A result that is there already."""

    deadline_ns = 1 << 62
    reply = None

    def __init__(self, result: Any) -> None:
        self._result = result

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> Any:
        return self._result

    def cancel(self) -> bool:
        return False


def drive(client: Any, steps: int, rate: float, seed: int) -> tuple[Any, Any, int]:
    """Return the actions, the seconds that the loop waited for each of them, and how many beats were missed."""
    arm = Arm(seed)
    actions: list[Any] = []
    waited: list[float] = []
    missed = 0
    period = 1 / rate
    # Rows are counted by steps and not by time, so that each way executes the same rows.
    with ActionChunks(
        client, steps=EXECUTED, period=None, max_wait=30.0, prefetch=PREFETCH, fallback="raise"
    ) as chunks:
        actions.append(chunks.step(arm.observe()).action)  # there is nothing to do while the first chunk is computed
        arm.apply(actions[0])
        beat = time.monotonic() + period
        for _ in range(steps - 1):
            observation = arm.observe()
            began = time.monotonic()
            action = chunks.step(observation).action
            waited.append(time.monotonic() - began)
            arm.apply(action)
            actions.append(action)
            beat += period
            left = beat - time.monotonic()
            if left < 0:
                missed += 1
                beat -= left  # the loop does not hurry to make up for it
            else:
                time.sleep(left)
    arm.close()
    return np.stack(actions), np.array(waited), missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--name", help="the service")
    source.add_argument("--checkpoint", type=Path, help="the checkpoint, to run in this process")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=30.0, help="steps a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="a .npy file for the actions")
    arguments = parser.parse_args()

    if arguments.name is not None:
        with ShmClient(arguments.name) as client:
            actions, waited, missed = drive(client, arguments.steps, arguments.rate, arguments.seed)
    else:
        in_process = InProcess(arguments.checkpoint)
        actions, waited, missed = drive(in_process, arguments.steps, arguments.rate, arguments.seed)
    if arguments.save is not None:
        np.save(arguments.save, actions)
    p50, p95, most = (1e3 * float(np.quantile(waited, part)) for part in (0.5, 0.95, 1.0))
    late = int((waited > 1 / arguments.rate).sum())
    print(f"{len(actions)} steps, {missed} missed beats, {late} of them behind the policy")
    print(f"waited for an action: p50 {p50:.2f}, p95 {p95:.2f}, at most {most:.2f} ms")


if __name__ == "__main__":
    main()
