"""The drop-in examples, run as their pages say; openpi's with the real openpi_client where that is installed."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable

import pytest

from shmserve.client.compat.openpi import WebsocketClientPolicy
from tests.support.daemon_process import Daemon
from tests.support.example_program import output_of
from tests.support.folders import REPOSITORY

pytestmark = pytest.mark.long

EXAMPLES = REPOSITORY / "examples"
#: An interpreter with openpi-client and this package, if the robot is not to run in the tests' own environment
#: (openpi-client as it is wants numpy below 2).
OPENPI_PYTHON = os.environ.get("SHMSERVE_OPENPI_PYTHON", sys.executable)
HAS_OPENPI = all(importlib.util.find_spec(name) is not None for name in ("openpi_client", "tree"))

needs_openpi = pytest.mark.skipif(
    not HAS_OPENPI, reason="openpi_client is not here: pip install --no-deps openpi-client dm-tree typing_extensions"
)


@needs_openpi
def test_openpis_runtime_and_chunk_broker_run_500_steps_with_one_import_line_changed(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon(EXAMPLES / "openpi_dropin" / "model")

    output = output_of(OPENPI_PYTHON, EXAMPLES / "openpi_dropin" / "robot.py", "--host", f"unix:{daemon.service_dir}")

    assert output.startswith("500 steps")
    requests = daemon.status()["requests"]
    # A chunk for each ten steps, and the reset with which openpi's runtime begins an episode.
    assert requests["served"] == 51
    assert requests["failed"] == requests["rejected"] == 0


@needs_openpi
def test_the_drop_in_is_a_base_policy_of_openpi() -> None:
    from openpi_client.base_policy import BasePolicy

    assert issubclass(WebsocketClientPolicy, BasePolicy)


def test_gr00ts_loop_runs_with_one_import_line_changed(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon(EXAMPLES / "gr00t_dropin" / "model")

    output = output_of(sys.executable, EXAMPLES / "gr00t_dropin" / "robot.py", "--host", f"unix:{daemon.service_dir}")

    assert "the policy gives ['single_arm']" in output
    assert "episode 4" in output


@pytest.mark.parametrize("example", ["openpi_dropin", "gr00t_dropin"])
def test_only_the_import_line_names_shmserve(example: str) -> None:
    robot = (EXAMPLES / example / "robot.py").read_text()
    policy = (EXAMPLES / example / "model" / "policy.py").read_text()

    code = [line for line in robot.splitlines() if "shmserve" in line and not line.lstrip().startswith("#")]
    assert len(code) == 1 and code[0].startswith("from shmserve.client.compat")
    assert [line for line in policy.splitlines() if "import" in line and "shmserve" in line] == []
