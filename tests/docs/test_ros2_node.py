"""examples/ros2_node with a stand-in for rclpy and a real daemon: an action for each beat, and the last one where none comes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.daemon_process import Daemon, wait_until
from tests.support.folders import REPOSITORY, SUPPORT

EXAMPLE = REPOSITORY / "examples" / "ros2_node"
STAND_INS = SUPPORT / "stand_ins"
_ROS = ("rclpy", "sensor_msgs", "std_msgs")


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example's module, with the stand-ins where ROS 2 would be."""
    monkeypatch.syspath_prepend(STAND_INS)
    spec = importlib.util.spec_from_file_location("ros2_node_example", EXAMPLE / "node.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        yield module
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in _ROS]:
            del sys.modules[name]


class Rig:
    """The node, the topics around it, and what it has sent."""

    def __init__(
        self, module: ModuleType, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, float]
    ) -> None:
        monkeypatch.setenv("SHMSERVE_RUNTIME_DIR", str(daemon.runtime_dir))
        self._msg = sys.modules["sensor_msgs.msg"]
        overrides = {"service": daemon.name, "deadline_s": 20.0, "max_age_s": 60.0, **parameters}
        monkeypatch.setattr(sys.modules["rclpy.node"].Node, "overrides", overrides)
        sys.modules["rclpy"].init()
        self.node = module.PolicyNode()
        self.topics = sys.modules["rclpy"].topics
        self.sent: list[list[float]] = []
        self.topics["commands"] = [lambda message: self.sent.append(message.data.tolist())]

    def see(self, image: Any, encoding: str = "rgb8", padding: int = 0) -> None:
        rows = np.pad(image.reshape(len(image), -1), ((0, 0), (0, padding)))
        message = self._msg.Image(
            height=image.shape[0], width=image.shape[1], encoding=encoding, step=rows.shape[1], data=rows.tobytes()
        )
        self.topics["image_raw"][0](message)

    def feel(self, **positions: float) -> None:
        message = self._msg.JointState(name=list(positions), position=list(positions.values()))
        self.topics["joint_states"][0](message)

    def beat(self) -> list[list[float]]:
        """Fire the timer; everything that was sent so far."""
        ((period_s, callback),) = self.node.timers
        assert period_s == 1 / 50
        callback()
        return self.sent


@pytest.fixture
def start_node(ros: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    with contextlib.ExitStack() as stack:

        def start(daemon: Daemon, **parameters: float) -> Rig:
            rig = Rig(ros, daemon, monkeypatch, parameters)
            stack.callback(rig.node.destroy_node)
            return rig

        yield start


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon(EXAMPLE / "model")
    try:
        yield daemon.start()
    finally:
        daemon.dismiss()


def light(row: int, column: int) -> Any:
    """A dark picture with one bright place."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[row - 2 : row + 2, column - 2 : column + 2] = 255
    return image


def test_each_beat_sends_the_policys_positions(daemon: Daemon, start_node: Callable[..., Rig]) -> None:
    rig = start_node(daemon)
    rig.beat()  # nothing was seen yet
    rig.see(light(24, 60))
    rig.feel(elbow=9.0)  # not this node's joints
    rig.beat()
    assert rig.sent == []

    rig.feel(elbow=9.0, tilt=0.5, pan=0.25)
    rig.beat()
    rig.see(light(4, 32), padding=5)
    rig.beat()

    (right, level), (ahead, up) = rig.sent
    assert right < 0.25 - 0.1 and level == pytest.approx(0.5, abs=0.02)  # pan goes down: to the right
    assert ahead == pytest.approx(0.25, abs=0.02) and up > 0.5 + 0.1
    assert rig.node.held == 0


def test_colours_arrive_in_their_order(ros: ModuleType) -> None:
    message = sys.modules["sensor_msgs.msg"].Image
    data = bytes([1, 2, 3, 4, 5, 6, 0, 0])

    red_first = ros.picture(message(height=1, width=2, encoding="rgb8", step=8, data=data))
    blue_first = ros.picture(message(height=1, width=2, encoding="bgr8", step=8, data=data))

    assert red_first.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert blue_first.tolist() == [[[3, 2, 1], [6, 5, 4]]]
    with pytest.raises(ValueError, match="encoding 'mono8': rgb8 or bgr8"):
        ros.picture(message(height=1, width=2, encoding="mono8", step=2, data=data[:2]))


def test_a_beat_without_an_action_repeats_the_last_command(daemon: Daemon, start_node: Callable[..., Rig]) -> None:
    rig = start_node(daemon, deadline_s=0.5)
    rig.feel(pan=0.0, tilt=0.0)
    rig.see(light(10, 10))
    wait_until("an action came", rig.beat)
    held, last = rig.node.held, rig.sent[-1]

    os.kill(daemon.engine_pid, signal.SIGSTOP)
    rig.see(light(40, 60))
    rig.beat()
    rig.beat()

    assert rig.sent[-2:] == [last, last]
    assert rig.node.held == held + 2
    assert "no reply from 't'" in rig.node.logger.warnings[-2]
    assert "every slot of 't'" in rig.node.logger.warnings[-1]  # it is still out

    os.kill(daemon.engine_pid, signal.SIGCONT)
    wait_until("it acts again", lambda: rig.beat()[-1] != last)


def test_an_action_that_is_too_old_is_not_used(daemon: Daemon, start_node: Callable[..., Rig]) -> None:
    rig = start_node(daemon, max_age_s=0.0)
    rig.feel(pan=0.0, tilt=0.0)
    rig.see(light(10, 10))
    rig.beat()

    assert rig.sent == [] and rig.node.held == 1
    assert "too old" in rig.node.logger.warnings[-1]


def test_a_node_holds_while_the_daemon_is_away_and_goes_on_with_the_next(
    daemon: Daemon, start_node: Callable[..., Rig]
) -> None:
    rig = start_node(daemon)
    rig.feel(pan=0.0, tilt=0.0)
    rig.see(light(10, 10))
    rig.beat()
    daemon.kill9()
    rig.see(light(40, 60))
    rig.beat()
    rig.beat()

    assert rig.sent[1:] == [rig.sent[0]] * 2
    assert "no daemon serves 't'" in rig.node.logger.warnings[-1]

    daemon.start()
    wait_until("it acts again", lambda: rig.beat()[-1] != rig.sent[0])
