"""The fields of two messages, as rclpy's generator makes them."""

from __future__ import annotations

import array
from collections.abc import Sequence


class Image:
    def __init__(
        self, *, height: int = 0, width: int = 0, encoding: str = "", step: int = 0, data: bytes = b""
    ) -> None:
        self.height, self.width, self.encoding, self.step = height, width, encoding, step
        self.data = array.array("B", data)


class JointState:
    def __init__(self, *, name: Sequence[str] = (), position: Sequence[float] = ()) -> None:
        self.name = list(name)
        self.position = array.array("d", position)
