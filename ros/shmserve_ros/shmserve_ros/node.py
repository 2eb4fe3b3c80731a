"""ROS 2 node of a policy: topics in, actions out, typed errors to /diagnostics.

The executor's callbacks store messages and return. A thread of the node owns the client: it alone waits, for a daemon or for
a reply.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import rclpy
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from shmserve.client import ActionChunks, NoFreshAction, ObservationStale, RequestTimeout, ShmClient, ShmServeError

from .conversion import Reader, action_rows, reader, time_from_start
from .newest import Newest

_MESSAGES = {"image": Image, "joint_state": JointState, "float64_multi_array": Float64MultiArray}
_ACTIONS = {"float64_multi_array": Float64MultiArray, "joint_trajectory": JointTrajectory}
#: An action of the next period may be better; others need a person.
_PASSING = (RequestTimeout, ObservationStale, NoFreshAction)


@dataclass
class Input:
    """One topic of the observation, and its latest value with the time of its arrival (time.monotonic())."""

    topic: str
    key: str
    read: Reader
    latest: tuple[Any, float] | None = None


class PolicyNode(Node):  # type: ignore[misc]
    """Asks a service `rate_hz` times a second and publishes its actions; config/policy.yaml has every parameter.

    Without an action (too late, too old, an error of the model, no daemon) nothing is published, and /diagnostics has the
    reason: the controller decides what an absent command means.
    """

    def __init__(self) -> None:
        super().__init__("policy")
        self._period_s = 1.0 / float(self._parameter("rate_hz", 50.0))
        self._timeout_s = float(self._parameter("timeout_s", 0.1))
        self._max_age_s = float(self._parameter("max_age_s", 0.2))
        self._joints = list(self._parameter("joints_order", ["pan", "tilt"]))
        self._action_key = self._parameter("action_key", "positions")
        self._service = self._parameter("service", "default")
        chunk_steps = int(self._parameter("chunk_steps", 0))
        action_type = self._parameter("action_type", "float64_multi_array")
        if action_type not in _ACTIONS:
            raise ValueError(f"action_type is {action_type!r}; expected {', '.join(_ACTIONS)}")
        if chunk_steps and action_type == "joint_trajectory":
            raise ValueError("chunk_steps is for float64_multi_array: a joint_trajectory has the whole chunk")
        self._is_trajectory = action_type == "joint_trajectory"
        self._actions = self.create_publisher(_ACTIONS[action_type], self._parameter("action_topic", "commands"), 10)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._inputs = [self._input(name) for name in self._parameter("inputs", ["camera", "joints"])]

        self._observations: Newest[tuple[dict[str, Any], float]] = Newest()
        self._level, self._reason = DiagnosticStatus.WARN, "no request yet"
        self.published = 0
        self._client = ShmClient(self._service, timeout=self._timeout_s, max_retries=0)
        self._chunks = self._action_chunks(chunk_steps) if chunk_steps else None
        self._thread = threading.Thread(target=self._ask_all, name="shmserve", daemon=True)
        self._thread.start()
        self.create_timer(self._period_s, self._on_beat)
        self.create_timer(1.0, self._report)

    def _parameter(self, name: str, default: Any) -> Any:
        return self.declare_parameter(name, default).value

    def _input(self, name: str) -> Input:
        kind = self._parameter(f"{name}.type", "image" if name == "camera" else "joint_state")
        topic, key = self._parameter(f"{name}.topic", name), self._parameter(f"{name}.key", name)
        found = Input(topic, key, reader(kind, self._joints))

        def store(message: Any) -> None:
            try:
                value = found.read(message)
            except ValueError as error:
                self._note(DiagnosticStatus.ERROR, f"{topic}: {error}")
                return
            if value is not None:
                # The time of arrival: a header's stamp may be another clock's.
                found.latest = value, time.monotonic()

        self.create_subscription(_MESSAGES[kind], topic, store, qos_profile_sensor_data)
        return found

    def _action_chunks(self, steps: int) -> ActionChunks:
        return ActionChunks(
            self._client, steps=steps, period=self._period_s, max_wait=0.0, fallback="raise", actions=self._action_key
        )

    def _on_beat(self) -> None:
        """Leave the newest observation for the thread."""
        values: dict[str, Any] = {}
        now = oldest = time.monotonic()
        for one in self._inputs:
            if one.latest is None:
                self._note(DiagnosticStatus.WARN, f"no message on {one.topic} yet")
                return
            values[one.key], arrived = one.latest
            if now - arrived > self._max_age_s:
                self._note(DiagnosticStatus.WARN, f"the latest message on {one.topic} is {now - arrived:.2f} s old")
                return
            oldest = min(oldest, arrived)
        self._observations.put((values, oldest))

    def _ask_all(self) -> None:
        """Ask for each observation until the node ends; in a thread of its own."""
        while (taken := self._observations.take()) is not None:
            try:
                rows = action_rows(self._ask(*taken), self._joints)
                self._publish(rows)
            except (ShmServeError, ValueError) as error:
                level = DiagnosticStatus.WARN if isinstance(error, _PASSING) else DiagnosticStatus.ERROR
                self._note(level, f"{type(error).__name__}: {error}")
            else:
                self._note(DiagnosticStatus.OK, "actions arrive")

    def _ask(self, observation: dict[str, Any], captured: float) -> Any:
        if self._chunks is not None:
            return self._chunks.step(observation, capture_time=captured).action
        reply = self._client.infer(observation, capture_time=captured, max_age=self._max_age_s)
        if not isinstance(reply, dict) or self._action_key not in reply:
            raise ValueError(f"the policy's result has no key {self._action_key!r} (parameter action_key)")
        return reply[self._action_key]

    def _publish(self, rows: Any) -> None:
        if self._is_trajectory:
            points = []
            for index, row in enumerate(rows):
                sec, nanosec = time_from_start(index, self._period_s)
                points.append(
                    JointTrajectoryPoint(positions=row.tolist(), time_from_start=Duration(sec=sec, nanosec=nanosec))
                )
            self._actions.publish(JointTrajectory(joint_names=self._joints, points=points))
        else:
            self._actions.publish(Float64MultiArray(data=rows[0].tolist()))
        self.published += 1

    def _note(self, level: Any, reason: str) -> None:
        self._level, self._reason = level, reason

    def _report(self) -> None:
        values = {"published": self.published, "observations replaced": self._observations.replaced}
        status = DiagnosticStatus(
            level=self._level,
            name=f"shmserve: {self._service}",
            message=self._reason,
            hardware_id=self._service,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def destroy_node(self) -> None:
        self._observations.close()
        self._thread.join()
        if self._chunks is not None:
            self._chunks.close()
        self._client.close()
        super().destroy_node()


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
