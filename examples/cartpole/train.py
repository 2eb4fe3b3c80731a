"""Trains the CartPole policy: it imitates a regulator that sees the true state, on the states that it reaches itself.

DAgger (Ross, Gordon and Bagnell, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online
Learning", AISTATS 2011): the student drives, the teacher says what it would have done, the student learns from all
that was gathered so far. The same seed on the same machine gives the same weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from camera import CameraCartPole
from expert import regulator_gain
from safetensors.torch import save_file
from torch.nn import functional

MODEL = Path(__file__).resolve().parent / "model"
sys.path.insert(0, str(MODEL))

from policy import HISTORY, KeypointNet, Policy, shrink

# Where episodes of a round begin, half ranges: most of the track, nearly any angle that is not yet a fall.
START = np.array([1.8, 0.5, 0.12, 0.5])
# A teacher's force of this many newtons is about 73 % certainty: close calls weigh little, they hardly matter.
CLOSE_CALL_N = 2.0
# Brings the auxiliary targets (position, velocity, angle, rate) to about unit size.
STATE_SCALE = torch.tensor([1.0, 1.0, 0.1, 0.5])
BATCH = 32


@dataclass
class Lessons:
    """All that was seen so far: pictures in the order taken, the true state at each, and where each episode began."""

    pictures: list[torch.Tensor] = field(default_factory=list)
    states: list[npt.NDArray[np.float64]] = field(default_factory=list)
    first_of_episode: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pictures)

    def tensors(self, gain: npt.NDArray[np.float64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """float16 pictures[n,1,19,300], windows[n,HISTORY] of their indices, the teacher's P(right)[n], states[n,4]."""
        ends = torch.arange(len(self))[:, None]
        # As the camera does: the history of an episode's first frames repeats the first one.
        windows = torch.maximum(ends + torch.arange(1 - HISTORY, 1), torch.tensor(self.first_of_episode)[:, None])
        states = torch.tensor(np.array(self.states), dtype=torch.float32)
        force = -states @ torch.tensor(gain, dtype=torch.float32)
        return torch.stack(self.pictures), windows, torch.sigmoid(force / CLOSE_CALL_N), states / STATE_SCALE


def gather(
    lessons: Lessons,
    camera: CameraCartPole,
    net: KeypointNet | None,
    gain: npt.NDArray[np.float64],
    random: np.random.Generator,
    steps: int,
) -> None:
    """Add `steps` pictures of episodes that `net` drives (None: the teacher), now and then pushed off course."""
    taken = 0
    while taken < steps:
        camera.reset(seed=int(random.integers(2**31)))
        camera.place(random.uniform(-START, START))
        first = len(lessons)
        over = False
        stumble, stumbling = 0, 0
        while not over and taken < steps:
            frames = camera.look()
            state = camera.state
            lessons.pictures.append(shrink(torch.from_numpy(frames[-1:]))[0].to(torch.float16))
            lessons.states.append(state)
            lessons.first_of_episode.append(first)
            taken += 1
            if stumbling == 0 and random.random() < 0.03:
                stumble, stumbling = int(random.integers(2)), int(random.integers(1, 5))
            if stumbling:
                stumbling -= 1
                action = stumble
            elif net is None:
                action = int(-gain @ state > 0)
            else:
                with torch.inference_mode():
                    action = int(net(shrink(torch.from_numpy(frames))).argmax())
            _, over = camera.push(action)


def learn(
    net: KeypointNet, aside: torch.nn.Linear, lessons: Lessons, gain: npt.NDArray[np.float64], updates: int, rate: float
) -> tuple[float, float]:
    """Fit `net` to all lessons; the mean losses of the last quarter.

    The first is how far its choices are from the teacher's (Kullback-Leibler, nats), the second how far `aside` reads
    the state wrong.
    """
    pictures, windows, right, states = lessons.tensors(gain)
    doubt = torch.special.entr(right) + torch.special.entr(1 - right)
    parameters = [*net.parameters(), *aside.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=updates)
    late: list[tuple[float, float]] = []
    for update in range(updates):
        picked = torch.randint(len(lessons), (BATCH,))
        points = net.keypoints(pictures[windows[picked].flatten()].to(torch.float32))
        features = net.features(points.view(BATCH, HISTORY, -1))
        logits = net.decide(features)
        # Less the teacher's own entropy: 0 is the teacher.
        choice = functional.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], right[picked])
        choice = choice - doubt[picked].mean()
        # Reading the state off the features is a task on the side: it tells the convolutions what is worth finding.
        state = functional.smooth_l1_loss(aside(features), states[picked])
        optimizer.zero_grad(set_to_none=True)
        (choice + state).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if update >= updates * 3 // 4:
            late.append((float(choice.detach()), float(state.detach())))
    choice_loss, state_loss = np.mean(late, axis=0)
    return float(choice_loss), float(state_loss)


def evaluate(policy: Policy, camera: CameraCartPole, seeds: range) -> list[float]:
    """The return of one whole episode per seed, driven by the packaged policy as the daemon would run it."""
    returns = []
    for seed in seeds:
        camera.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action = policy.infer({"frames": torch.from_numpy(camera.look())})["action"]
            reward, over = camera.push(action)
            total += reward
        returns.append(total)
    return returns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the episodes and the batches (default 0)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of driving and learning (default 4)")
    parser.add_argument("--steps", type=int, default=2000, help="pictures taken in each round (default 2000)")
    parser.add_argument(
        "--updates",
        type=int,
        default=400,
        help="batches learned in each round, twice as many in the last (default 400)",
    )
    parser.add_argument("--episodes", type=int, default=10, help="episodes of the evaluation at the end (default 10)")
    parser.add_argument(
        "--package", type=Path, default=MODEL, help="model package to write the weights into (default: the one here)"
    )
    arguments = parser.parse_args()

    # One thread: bitwise the same sums on every run, and the whole training fits one core.
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    random = np.random.default_rng(arguments.seed)
    gain = regulator_gain()
    net = KeypointNet()
    aside = torch.nn.Linear(net.decide.in_features, 4)
    lessons = Lessons()
    camera = CameraCartPole(HISTORY)
    began = time.monotonic()
    for index in range(arguments.rounds):
        gather(lessons, camera, net if index else None, gain, random, arguments.steps)
        last = index == arguments.rounds - 1
        choice, state = learn(net, aside, lessons, gain, arguments.updates * (2 if last else 1), 3e-3)
        print(
            f"round {index + 1}/{arguments.rounds}: {len(lessons)} pictures, choice loss {choice:.3f}, "
            f"state loss {state:.3f}, {time.monotonic() - began:.0f} s",
            flush=True,
        )
    weights = arguments.package / "weights.safetensors"
    save_file(net.state_dict(), weights)
    print(f"wrote {weights} ({weights.stat().st_size} bytes)", flush=True)
    # Seeds far from the robot's, whose episodes start at 0.
    seeds = range(1000, 1000 + arguments.episodes)
    returns = evaluate(Policy(arguments.package, torch.device("cpu")), camera, seeds)
    camera.close()
    print("returns", " ".join(f"{value:.0f}" for value in returns), f"mean {np.mean(returns):.1f}")


if __name__ == "__main__":
    main()
