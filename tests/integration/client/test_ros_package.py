"""ros/shmserve_ros with a stand-in for rclpy and a real daemon: actions on a topic, reasons on /diagnostics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.daemon_process import Daemon, wait_until
from tests.support.folders import REPOSITORY, SUPPORT

_ROS = ("rclpy", "sensor_msgs", "std_msgs", "trajectory_msgs", "diagnostic_msgs", "builtin_interfaces", "shmserve_ros")

#: The positions as they are: alone, and a hundred times.
_POLICY = """
class Policy:
    def __init__(self, path, device):
        pass

    def infer(self, observation):
        positions = observation["positions"]
        return {"positions": positions, "chunk": positions.repeat(100, 1)}
"""


class Rig:
    """A node, the topics around it, and what it has sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> None:
        import rclpy.node
        from shmserve_ros.node import PolicyNode

        names = {"camera.key": "image", "joints.key": "positions", "timeout_s": 20.0, "max_age_s": 60.0}
        monkeypatch.setattr(rclpy.node.Node, "overrides", {**names, **parameters})
        rclpy.init()
        self.node = PolicyNode()
        self.sent: list[Any] = []
        self.reports: list[Any] = []
        rclpy.topics["commands"] = [self.sent.append]
        rclpy.topics["/diagnostics"] = [self.reports.append]
        self._topics = rclpy.topics

    def see(self) -> None:
        from sensor_msgs.msg import Image, JointState

        data = np.zeros((48, 64, 3), np.uint8).tobytes()
        self._topics["camera"][0](Image(height=48, width=64, encoding="rgb8", step=192, data=data))
        self._topics["joints"][0](JointState(name=["tilt", "pan"], position=[0.5, 0.25]))

    def beat(self) -> list[Any]:
        self.node.timers[0][1]()
        return self.sent

    def report(self) -> tuple[bytes, str]:
        self.node.timers[1][1]()
        (status,) = self.reports[-1].status
        return status.level, status.message


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    monkeypatch.syspath_prepend(SUPPORT / "stand_ins")
    monkeypatch.syspath_prepend(REPOSITORY / "ros/shmserve_ros")
    rigs: list[Rig] = []

    def make(**parameters: Any) -> Rig:
        rigs.append(Rig(monkeypatch, **parameters))
        return rigs[-1]

    yield make
    for one in rigs:
        one.node.destroy_node()
    for name in [name for name in sys.modules if name.partition(".")[0] in _ROS]:
        del sys.modules[name]


def test_actions_are_published_as_numbers_as_a_trajectory_and_from_chunks(
    rig: Callable[..., Rig], start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/policy.py").write_text(_POLICY)
    daemon = start_daemon(tmp_path / "model")
    monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", str(daemon.runtime_dir))

    numbers = rig(service=daemon.name)
    assert numbers.beat() == []
    assert numbers.report() == (b"\x01", "no message on camera yet")
    numbers.see()
    wait_until("an action was published", numbers.beat)
    wait_until("the report says so", lambda: numbers.report() == (b"\x00", "actions arrive"))
    numbers.node.destroy_node()  # the stand-in's topics are of one process
    trajectory = rig(service=daemon.name, action_type="joint_trajectory", action_key="chunk")
    trajectory.see()
    wait_until("a trajectory was published", trajectory.beat)
    trajectory.node.destroy_node()
    chunks = rig(service=daemon.name, action_key="chunk", chunk_steps=4)
    chunks.see()
    wait_until("a row of a chunk was published", chunks.beat)

    assert list(numbers.sent[0].data) == pytest.approx([0.25, 0.5])
    assert trajectory.sent[0].joint_names == ["pan", "tilt"]
    assert [point.positions for point in trajectory.sent[0].points] == [[0.25, 0.5]] * 100
    due = trajectory.sent[0].points[-1].time_from_start
    assert (due.sec, due.nanosec) == (2, 0)
    assert list(chunks.sent[0].data) == pytest.approx([0.25, 0.5])


def test_reasons_are_reported_by_the_class_of_the_error(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", str(tmp_path))
    node = rig(service="nobody", timeout_s=0.05)
    node.see()
    node.beat()

    wait_until(
        "the error is reported", lambda: node.report()[1].startswith("ServiceUnavailable: no daemon serves 'nobody'")
    )
    assert node.report()[0] == b"\x02" and node.sent == []


def test_old_messages_are_no_observation(rig: Callable[..., Rig]) -> None:
    node = rig(max_age_s=-1.0)
    node.see()
    node.beat()

    assert node.report()[0] == b"\x01" and "the latest message on camera is" in node.report()[1]


def test_an_action_type_that_is_unknown_is_refused(rig: Callable[..., Rig]) -> None:
    with pytest.raises(ValueError, match="action_type is 'twist'; expected float64_multi_array, joint_trajectory"):
        rig(action_type="twist")
