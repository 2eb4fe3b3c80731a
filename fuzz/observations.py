"""Observations and actions of real robots and policies, from which the seeds are made."""

from __future__ import annotations

from typing import Any

import numpy as np

TREES: list[Any] = [
    {"task": "pick up the cup", "state": np.arange(7, dtype=np.float32), "image": np.zeros((6, 8, 3), np.uint8)},
    {"observation/state": np.zeros(8), "observation/image": np.zeros((2, 2, 3), np.uint8), "prompt": "fold the towel"},
    {"actions": np.zeros((16, 7), np.float32), "brightness": 0.5, "steps": 3, "done": False, "extra": None},
    {"video.ego": [np.zeros((1, 2, 2, 3), np.uint8)], "annotation": ["open", "close"], "nested": {"a": ({}, [], ())}},
    {"text": "x" * 300, "blob": bytes(40), "list": [1, 2, 3, 4, 5, 6, 7, 8], "floats": [0.5] * 9, "bools": [True] * 8},
    {"big": 1 << 100, "scalar": np.float16(1.5), "complex": np.complex64(1j), "empty": np.zeros((0, 4))},
    {0: np.zeros((2, 3)), -1: "", 1 << 40: [7], "detections": [{"box": np.zeros(4), "name": "cup"}] * 3, "one": [0.5]},
    {"lengths": [np.zeros((0, 3), np.int16), np.zeros((5, 0, 2)), b"", [True], "\ud800", np.bool_(True), -(1 << 64)]},
    ("InferenceFailed", "ValueError: the gripper is in two places at once"),
    [],
    7,
    None,
]
