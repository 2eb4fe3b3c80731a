"""Messages to the arrays of an observation, and actions to the numbers of a message. Nothing here imports ROS.

A message is anything with the fields of its type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

#: Channels of the encodings, and whether blue comes first.
_ENCODINGS = {"rgb8": (3, False), "bgr8": (3, True), "mono8": (1, False)}

Reader = Callable[[Any], Any]


def image(message: Any) -> Any:
    """Return a sensor_msgs/Image as uint8[height, width, channels], red first; a view of the message where possible."""
    if message.encoding not in _ENCODINGS:
        known = ", ".join(_ENCODINGS)
        raise ValueError(f"an image has encoding {message.encoding!r}; expected {known}: convert it with image_proc")
    channels, is_blue_first = _ENCODINGS[message.encoding]
    row_bytes = message.width * channels
    if message.step < row_bytes or len(message.data) < message.step * message.height:
        size = f"{message.width} x {message.height} {message.encoding}"
        raise ValueError(f"an image of {size} has {len(message.data)} bytes in rows of {message.step}")
    rows = np.frombuffer(message.data, np.uint8)[: message.height * message.step].reshape(message.height, message.step)
    pixels = rows[:, :row_bytes].reshape(message.height, message.width, channels)  # a row may have padding
    return pixels[..., ::-1] if is_blue_first else pixels


def joint_positions(joints: Sequence[str]) -> Reader:
    """Return a reader of sensor_msgs/JointState: the positions of these joints, in this order (radians, metres).

    It returns None for a message without one of them: several publishers may share the topic.
    """

    def read(message: Any) -> Any:
        found = dict(zip(message.name, message.position, strict=False))
        return np.array([found[joint] for joint in joints]) if all(joint in found for joint in joints) else None

    return read


def numbers(message: Any) -> Any:
    """Return a std_msgs/Float64MultiArray as float64[n]."""
    return np.array(message.data, np.float64)


def reader(kind: str, joints: Sequence[str]) -> Reader:
    """Return the reader of one type of input."""
    readers = {"image": image, "joint_state": joint_positions(joints), "float64_multi_array": numbers}
    if kind not in readers:
        raise ValueError(f"the type of an input is {kind!r}; expected {', '.join(readers)}")
    return readers[kind]


def action_rows(action: Any, joints: Sequence[str]) -> Any:
    """Return an action as float64[rows, joints]; one row for a policy that gives no chunk."""
    rows = np.atleast_2d(np.asarray(action, np.float64))
    if rows.ndim != 2 or rows.shape[1] != len(joints):
        raise ValueError(
            f"the policy's action has shape {np.shape(action)}; expected {len(joints)} numbers a row: {', '.join(joints)}"
        )
    if not np.isfinite(rows).all():
        raise ValueError("the policy's action has numbers that are not finite")
    return rows


def time_from_start(row: int, period_s: float) -> tuple[int, int]:
    """Return when a row of a chunk is due, as seconds and nanoseconds after the trajectory's beginning.

    >>> time_from_start(0, 0.02), time_from_start(74, 0.02)
    ((0, 20000000), (1, 500000000))
    """
    seconds, nanoseconds = divmod(round((row + 1) * period_s * 1e9), 1_000_000_000)
    return seconds, nanoseconds
