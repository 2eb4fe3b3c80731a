"""As much of rclpy as examples/ros2_node and ros/shmserve_ros use, in one process: topics are lists of callbacks, and a test fires timers.

ROS 2 comes from the distribution's packages, never from pip, so the tests cannot have the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: The callbacks of each topic.
topics: dict[str, list[Callable[[Any], None]]] = {}


def init() -> None:
    topics.clear()


def try_shutdown() -> None:
    topics.clear()
