"""Node with the methods that a node calls on itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import topics


class Parameter:
    def __init__(self, value: Any) -> None:
        self.value = value


class Publisher:
    def __init__(self, message_type: type, topic: str) -> None:
        self._type = message_type
        self._topic = topic

    def publish(self, message: Any) -> None:
        assert type(message) is self._type
        for callback in topics.get(self._topic, []):
            callback(message)


class Logger:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str, *, throttle_duration_sec: float) -> None:
        self.warnings.append(text)


class Clock:
    def now(self) -> Clock:
        return self

    def to_msg(self) -> str:
        return "now"


class Node:
    #: What `--ros-args -p NAME:=VALUE` would say.
    overrides: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, name: str) -> None:
        self.name = name
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.logger = Logger()

    def declare_parameter(self, name: str, default: Any) -> Parameter:
        return Parameter(self.overrides.get(name, default))

    def create_subscription(self, message_type: type, topic: str, callback: Callable[[Any], None], qos: Any) -> None:
        topics.setdefault(topic, []).append(callback)

    def create_publisher(self, message_type: type, topic: str, qos: Any) -> Publisher:
        return Publisher(message_type, topic)

    def create_timer(self, period_s: float, callback: Callable[[], None]) -> None:
        self.timers.append((period_s, callback))

    def get_logger(self) -> Logger:
        return self.logger

    def get_clock(self) -> Clock:
        return Clock()

    def destroy_node(self) -> None:
        self.timers.clear()
