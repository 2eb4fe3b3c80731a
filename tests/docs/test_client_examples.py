"""The examples of the client, run as their pages say."""

from __future__ import annotations

import re
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.daemon_process import Daemon
from tests.support.example_program import output_of, running
from tests.support.folders import REPOSITORY

pytestmark = pytest.mark.long

EXAMPLES = REPOSITORY / "examples"


def printed(daemon: Daemon, script: str, *arguments: str) -> str:
    return output_of(sys.executable, EXAMPLES / script, *arguments, daemon=daemon)


@pytest.fixture
def served(request: pytest.FixtureRequest, start_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon of the package that the test names."""
    name: Any = request.param
    return start_daemon(EXAMPLES / name / "model", name="default")


@pytest.mark.parametrize("served", ["minimal"], indirect=True)
def test_the_shortest_robot_reaches_its_goal(served: Daemon) -> None:
    assert printed(served, "minimal/robot.py") == "the goal is missed by 0.0\n"
    assert served.wait_counted(served=100)["failed"] == 0


@pytest.mark.parametrize("served", ["camera_loop"], indirect=True)
def test_the_camera_turns_to_the_spot_and_no_frame_is_copied(served: Daemon) -> None:
    output = printed(served, "camera_loop/robot.py")

    frames, held = re.findall(r"(\d+) frames, (\d+) times held", output)[0]
    in_place = served.status()["transport"] == "named"
    assert int(frames) == 60 and int(held) < 40
    assert re.search(rf"the spot is [+-][01], [+-][01] pixels off; in place: {in_place}", output), output


@pytest.mark.parametrize("served", ["asyncio_robot"], indirect=True)
def test_the_robot_in_an_event_loop_answers_people_while_it_drives(served: Daemon) -> None:
    with running(sys.executable, EXAMPLES / "asyncio_robot/robot.py", daemon=served) as robot:
        assert robot.stdout is not None
        port = int(robot.stdout.readline().rpartition(" ")[2])
        with socket.create_connection(("127.0.0.1", port)) as people, people.makefile("rw") as lines:

            def ask(line: str) -> float:
                lines.write(f"{line}\n")
                lines.flush()
                return float(lines.readline().split()[0])

            ask("1.5")
            while abs(ask("?") - 1.5) > 0.05:  # the watchdog ends it if it never arrives
                pass
        robot.send_signal(signal.SIGINT)
        output, _ = robot.communicate()

    assert (robot.returncode, output) == (0, "")


@pytest.mark.parametrize("served", ["several_robots"], indirect=True)
def test_each_of_several_robots_gets_its_own_actions(served: Daemon) -> None:
    lines = printed(served, "several_robots/robots.py", "--robots", "3", "--steps", "100").splitlines()

    assert sorted(lines) == [f"robot {number}: 100 actions, all of them its own" for number in range(3)]
    assert served.wait_counted(served=303)["failed"] == 0


def test_the_shortest_robot_has_ten_lines() -> None:
    lines = (EXAMPLES / "minimal" / "robot.py").read_text().splitlines()

    assert len([line for line in lines if line and not line.startswith('"""')]) <= 10
