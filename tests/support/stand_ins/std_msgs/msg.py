"""The fields of one message, as rclpy's generator makes them."""

from __future__ import annotations

import array
from collections.abc import Sequence


class Float64MultiArray:
    def __init__(self, *, data: Sequence[float] = ()) -> None:
        self.data = array.array("d", data)
