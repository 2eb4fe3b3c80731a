"""The fields of one message, as rclpy's generator makes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Duration:
    sec: int = 0
    nanosec: int = 0
