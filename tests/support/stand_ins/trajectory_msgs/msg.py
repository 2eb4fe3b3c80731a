"""The fields of two messages, as rclpy's generator makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class JointTrajectoryPoint:
    positions: list[float] = field(default_factory=list)
    time_from_start: Any = None


@dataclass
class JointTrajectory:
    joint_names: list[str] = field(default_factory=list)
    points: list[JointTrajectoryPoint] = field(default_factory=list)
