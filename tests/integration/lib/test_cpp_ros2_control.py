"""examples/ros2_control_policy, compiled against stand-in headers, with a real daemon. It has not met ROS 2 itself."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import watchdog
from tests.support.c_library import compile_traps
from tests.support.cpp_library import compile_cpp
from tests.support.daemon_process import Daemon, environment
from tests.support.folders import REPOSITORY, SUPPORT

pytestmark = [pytest.mark.sealed_too]

EXAMPLE = REPOSITORY / "examples/ros2_control_policy"
HOME = (0.5, -0.5, 0.25)


@pytest.fixture(scope="module")
def manager() -> Path:
    includes = [f"-I{EXAMPLE}/include", f"-I{SUPPORT}/stand_ins/ros2_control"]
    return compile_cpp(
        SUPPORT / "cpp_programs/controller_manager.cpp",
        *includes,
        str(EXAMPLE / "src/policy_controller.cpp"),
    )


@pytest.fixture(scope="module")
def traps() -> Path:
    return compile_traps()


def distance(line: str) -> float:
    return max(abs(float(value) - home) for value, home in zip(line.split(), HOME, strict=True))


def next_line(process: subprocess.Popen[str], wanted: Callable[[str], bool]) -> str:
    """Read until a line is wanted; the controller goes on meanwhile."""
    assert process.stdout is not None
    while line := process.stdout.readline():
        if wanted(line.strip()):
            return line.strip()
    raise AssertionError(f"it ended: {process.communicate()}")


def is_command(line: str) -> bool:
    return re.fullmatch(r"-?[\d.]+ -?[\d.]+ -?[\d.]+", line) is not None


def test_update_plays_chunks_never_allocates_and_holds_while_the_service_is_away(
    make_daemon: Callable[..., Daemon], manager: Path, traps: Path
) -> None:
    daemon = make_daemon(EXAMPLE / "model")
    with subprocess.Popen(
        [manager, daemon.name],
        env={**environment(), "SHMSERVE_RUNTIME_DIR": str(daemon.runtime_dir), "LD_PRELOAD": str(traps)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        watchdog.watch(process)
        try:
            names = [next_line(process, lambda line: line.startswith("commands")) for _ in HOME]
            next_line(process, lambda line: line == "silent")
            daemon.start()
            first = next_line(process, is_command)
            daemon.kill9()
            next_line(process, lambda line: line == "silent")
            daemon.start()
            next_line(process, lambda line: is_command(line) and distance(line) < 0.05)

            _, errors = process.communicate("", timeout=60)
        finally:
            watchdog.reap(process)

    assert names == ["commands shoulder/position", "commands elbow/position", "commands wrist/position"]
    assert 0.05 < distance(first) < distance("1 1 1") + 0.001
    assert process.returncode == 0, errors
    assert re.fullmatch(r"steps: fresh \d+, overrun \d+, held [1-9]\d*, without an action [1-9]\d*\n", errors)
