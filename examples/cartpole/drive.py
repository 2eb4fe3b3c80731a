"""The control loop: on every beat look, ask the policy, push; and note how long each answer took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
from camera import CameraCartPole
from pace import Pace
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from shmserve.client import Reply, ShmClient

# How many frames the policy looks at; its metadata says the same.
HISTORY = 3
EPISODE_STEPS = 500
# A robot would brake here; this one gives up.
ANSWER_TIMEOUT_S = 2.0
# Drawing the progress takes milliseconds of the beat's spare time: five times a second will do.
STEPS_PER_DRAWING = 10


@dataclass(frozen=True)
class Drive:
    """What one drive showed. Times are of every request but the first, which is apart.

    `model_ms` is the part of `round_trip_ms` that the model itself took; `missed_after` are the beats that were missed after
    each request; `versions` are those that answered, in turn, and `switched_s` is when each but the first began to.
    """

    seeds: range
    returns: list[float]
    first_ms: float
    asked_s: npt.NDArray[np.float64]
    round_trip_ms: npt.NDArray[np.float64]
    model_ms: npt.NDArray[np.float64]
    missed_after: npt.NDArray[np.int64]
    versions: list[str]
    switched_s: list[float]

    @property
    def missed(self) -> int:
        return int(self.missed_after.sum())

    def missed_by_answers(self, period_ms: float) -> int:
        """Return how many beats were missed because an answer took longer than a period.

        The others were missed because the answer and the robot's own work took longer together.
        """
        return int(self.missed_after[self.round_trip_ms > period_ms].sum())

    @property
    def mean_return(self) -> float:
        return float(np.mean(self.returns))


def drive(client: ShmClient, seeds: range, rate_hz: float, console: Console) -> Drive:
    """Balance one episode per seed, `rate_hz` pushes a second; raises what `client.infer` raises."""
    camera = CameraCartPole(HISTORY)
    pace = Pace(rate_hz)
    returns: list[float] = []
    asked_ns: list[int] = []
    answered_ns: list[int] = []
    replies: list[Reply] = []
    missed_after: list[int] = []
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} pushes  {task.fields[answer_ms]:5.2f} ms"),
        TimeRemainingColumn(),
        console=console,
        # Its own drawing thread would take the interpreter from the loop in the middle of a request.
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )

    def on_model_change(before: str, after: str) -> None:
        waited_ms = (time.monotonic_ns() - asked_ns[-1]) / 1e6
        text = (
            f"push {len(asked_ns)}: version {after} answers instead of {before}, {waited_ms:.1f} ms after it was asked"
        )
        console.print(text, highlight=False, soft_wrap=True)

    client.on_model_change(on_model_change)
    try:
        with progress:
            task = progress.add_task("first answer", total=len(seeds) * EPISODE_STEPS, answer_ms=0.0)
            # The first request makes room for three frames in shared memory: before the clock starts.
            camera.reset(seed=seeds.start)
            began_ns = time.monotonic_ns()
            client.infer({"frames": camera.look()}, timeout=ANSWER_TIMEOUT_S)
            first_ms = (time.monotonic_ns() - began_ns) / 1e6
            pace.start()
            for episode, seed in enumerate(seeds, start=1):
                progress.update(task, description=f"episode {episode}/{len(seeds)}")
                camera.reset(seed=seed)
                client.reset()
                total, over = 0.0, False
                while not over:
                    missed = pace.missed
                    pace.wait()
                    if replies:
                        missed_after.append(pace.missed - missed)
                    frames = camera.look()
                    asked_ns.append(time.monotonic_ns())
                    reply = client.request({"frames": frames}, timeout=ANSWER_TIMEOUT_S)
                    answered_ns.append(time.monotonic_ns())
                    reward, over = camera.push(reply.action["action"])
                    replies.append(reply)
                    total += reward
                    progress.advance(task)
                    if len(asked_ns) % STEPS_PER_DRAWING == 0:
                        progress.update(task, answer_ms=(answered_ns[-1] - asked_ns[-1]) / 1e6, refresh=True)
                returns.append(total)
                progress.update(task, completed=episode * EPISODE_STEPS)
                console.print(f"episode {episode}/{len(seeds)}, seed {seed}: return {total:.0f}")
    finally:
        camera.close()
    asked, answered = np.array(asked_ns), np.array(answered_ns)
    versions = [reply.model_version for reply in replies]
    switches = [number for number in range(1, len(versions)) if versions[number] != versions[number - 1]]
    return Drive(
        seeds=seeds,
        returns=returns,
        first_ms=first_ms,
        asked_s=(asked - asked[0]) / 1e9,
        round_trip_ms=(answered - asked) / 1e6,
        model_ms=np.array([reply.timing.infer_us for reply in replies]) / 1e3,
        missed_after=np.array([*missed_after, 0]),  # the last beat has no successor
        versions=[version for version, _ in groupby(versions)],
        switched_s=[(asked_ns[number] - asked_ns[0]) / 1e9 for number in switches],
    )
