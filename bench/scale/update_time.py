"""Time of a whole update of a small package: `python -m bench.scale.update_time`.

From the start of the command to its end, with four robots at 50 Hz served meanwhile, and a spare engine that is ready.
"""

from __future__ import annotations

import re
import subprocess
import time
from contextlib import ExitStack

import numpy as np

from bench.service import POLICIES, Service, environment

from .engine_deaths import ROBOTS, Robot, wait_for_engine
from .figure import Figure, main
from .start_up import shmserve_admin

TITLE = "Updating a small package"
UPDATES_PER_S = 5
_STEP = re.compile(r"^  (\w+(?: \w+)?) +([\d.]+) s$", re.MULTILINE)
STEPS = ("receive", "check", "start", "load", "warm up", "swap")


def measure(seconds: float) -> list[Figure]:
    """Measure updates to packages that are new to the service."""
    updates = max(3, round(UPDATES_PER_S * seconds))
    took: list[float] = []
    steps: list[dict[str, float]] = []
    with ExitStack() as cleanup:
        service = cleanup.enter_context(Service(POLICIES / "timed.py"))
        robots = [Robot(service) for _ in range(ROBOTS)]
        for robot in robots:
            cleanup.callback(robot.close)
        for robot in robots:
            robot.wait_attached()
        command = [*shmserve_admin(), "--runtime-dir", str(service.runtime_dir)]
        for number in range(updates):
            package = service.package(f"update-{number}", POLICIES / "timed.py")
            wait_for_engine(service, spare=True)
            began = time.monotonic()
            done = subprocess.run(
                [*command, "update-model", str(package)],
                check=False,
                env=environment(),
                capture_output=True,
                text=True,
            )
            took.append(1e3 * (time.monotonic() - began))
            if done.returncode:
                raise RuntimeError(f"an update failed: {done.stderr}\n{service.log}")
            steps.append(durations_ms(done.stdout))
        for robot in robots:
            robot.end()
        status_ms = _status_ms(command)
    return [
        Figure("whole_p50_ms", f"shmserve-admin update-model, p50 of {updates}", float(np.median(took)), "ms", status_ms, "shmserve-admin status"),
        Figure("whole_longest_ms", "the longest", max(took), "ms"),
        *(
            Figure(f"{step.replace(' ', '_')}_p50_ms", step, float(np.median([each.get(step, 0.0) for each in steps])), "ms")
            for step in STEPS
        ),
    ]  # fmt: skip


def durations_ms(printed: str) -> dict[str, float]:
    """Return how long each step took, from the output of the command.

    >>> durations_ms("  receive   0.012 s\\n  warm up   0.005 s\\nserving version 12; no request was taken for 1.2 ms\\n")
    {'receive': 12.0, 'warm up': 5.0}
    """
    return {step: round(1e3 * float(took), 3) for step, took in _STEP.findall(printed)}


def _status_ms(command: list[str]) -> float:
    took = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run([*command, "status", "--json"], env=environment(), stdout=subprocess.DEVNULL, check=True)
        took.append(1e3 * (time.monotonic() - began))
    return float(np.median(took))


if __name__ == "__main__":
    main(TITLE, measure)
