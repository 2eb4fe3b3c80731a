"""A ROS 2 node that asks a policy: camera and joint states in, positions out, and what was last sent where none comes.

The only file here that imports rclpy; the policy's PyTorch is in the daemon's process.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray

from shmserve.client import ServiceUnavailable, ShmClient, ShmServeError

#: Time to look for a daemon that went away, after this beat's command was published.
_ATTACH_S = 0.5


class PolicyNode(Node):  # type: ignore[misc]
    """Asks service `service` `rate_hz` times a second and publishes the positions of `joints`, in that order.

    A beat whose action is not there within `deadline_s`, or whose frame or joint state is older than `max_age_s`
    (seconds), repeats the last command: for positions that is to stand still. Before the first action nothing is sent.
    """

    def __init__(self) -> None:
        super().__init__("shmserve_policy")
        service = self.declare_parameter("service", "default").value
        self._joints: list[str] = list(self.declare_parameter("joints", ["pan", "tilt"]).value)
        rate_hz = float(self.declare_parameter("rate_hz", 50.0).value)
        self._deadline_s = float(self.declare_parameter("deadline_s", 0.015).value)
        self._max_age_s = float(self.declare_parameter("max_age_s", 0.1).value)
        # One slot: a beat waits for its own answer, and a large slot stays in the processor's cache.
        self._client = ShmClient(service, timeout=self._deadline_s, max_retries=0, slots=1)
        # Beside each value the time.monotonic() of its arrival: a header's stamp may be another clock's.
        self._image: tuple[Any, float] | None = None
        self._positions: tuple[Any, float] | None = None
        self._command: Any = None
        self.held = 0  # beats without an action of their own

        self.create_subscription(Image, "image_raw", self._on_image, qos_profile_sensor_data)
        self.create_subscription(JointState, "joint_states", self._on_joints, 10)
        self._publisher = self.create_publisher(Float64MultiArray, "commands", 10)
        self.create_timer(1.0 / rate_hz, self._on_beat)

    def _on_image(self, message: Any) -> None:
        self._image = picture(message), time.monotonic()

    def _on_joints(self, message: Any) -> None:
        positions = dict(zip(message.name, message.position, strict=False))
        if all(joint in positions for joint in self._joints):  # others publish on the same topic
            self._positions = np.array([positions[joint] for joint in self._joints]), time.monotonic()

    def _on_beat(self) -> None:
        if self._image is None or self._positions is None:
            return
        (image, seen), (positions, measured) = self._image, self._positions
        try:
            action = self._client.infer(
                {"image": image, "positions": positions}, capture_time=min(seen, measured), max_age=self._max_age_s
            )
            command = np.asarray(action["positions"], np.float64)
            if command.shape != positions.shape or not np.isfinite(command).all():
                raise ValueError(f"the policy gave {command!r} for {len(positions)} joints")
        except (ShmServeError, ValueError) as error:
            self._hold(error)
        else:
            self._command = command
            self._send()

    def _hold(self, error: Exception) -> None:
        self.held += 1
        if self._command is not None:
            self._send()
        # From its first attempt on the client attaches by itself, but not within a beat's deadline.
        if isinstance(error, ServiceUnavailable):
            with contextlib.suppress(ShmServeError):
                self._client.connect(timeout=_ATTACH_S)
        self.get_logger().warning(f"holding: {error}", throttle_duration_sec=1.0)

    def _send(self) -> None:
        self._publisher.publish(Float64MultiArray(data=self._command.tolist()))

    def destroy_node(self) -> None:
        self._client.close()
        super().destroy_node()


def picture(message: Any) -> Any:
    """A sensor_msgs/Image as uint8[height, width, 3], red first; a view of the message where that is possible."""
    if message.encoding not in ("rgb8", "bgr8"):
        raise ValueError(f"encoding {message.encoding!r}: rgb8 or bgr8 (image_proc converts)")
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)  # a row may have padding
    pixels = rows[:, : message.width * 3].reshape(message.height, message.width, 3)
    return pixels[..., ::-1] if message.encoding == "bgr8" else pixels


def main() -> None:
    rclpy.init()
    node = PolicyNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
