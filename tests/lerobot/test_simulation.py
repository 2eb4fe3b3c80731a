"""examples/lerobot_sim: an arm in MuJoCo, driven from a service and from the same process, gets the same actions bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lerobot", reason="LeRobot is not installed here: make test-lerobot")
pytest.importorskip("mujoco", reason="MuJoCo is not installed here: make test-lerobot")

from tests.support.daemon_process import Daemon
from tests.support.example_program import output_of
from tests.support.folders import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "lerobot_sim"
STEPS = 90


@pytest.fixture(scope="module", autouse=True)
def renderer() -> None:
    """Skip where nothing can be rendered."""
    program = f"import sys; sys.path.insert(0, {str(EXAMPLE)!r}); import arm; arm.Arm(0).observe()"
    probed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if probed.returncode:
        pytest.skip(f"MuJoCo renders nothing here: {(probed.stderr.strip().splitlines() or ['?'])[-1]}")


@pytest.mark.long
def test_a_closed_loop_through_the_service_gives_the_actions_of_the_policy_in_process(tmp_path: Path) -> None:
    checkpoint, served, in_process = tmp_path / "reacher", tmp_path / "served.npy", tmp_path / "in_process.npy"
    output_of(sys.executable, EXAMPLE / "make_policy.py", checkpoint)
    drive = (sys.executable, EXAMPLE / "closed_loop.py", "--steps", STEPS)
    with Daemon(checkpoint) as daemon:
        report = output_of(*drive, "--name", daemon.name, "--save", served, daemon=daemon)
        requests = daemon.status()["requests"]
    output_of(*drive, "--checkpoint", checkpoint, "--save", in_process)

    assert report.startswith(f"{STEPS} steps, ")
    assert requests["served"] >= STEPS / 15 and not requests["failed"]  # a chunk is 15 rows at most
    actions = np.load(served)
    assert actions.shape == (STEPS, 2) and np.ptp(actions, axis=0).min() > 0
    np.testing.assert_array_equal(actions, np.load(in_process))
