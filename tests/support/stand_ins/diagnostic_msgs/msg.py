"""The fields of three messages, as rclpy's generator makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar


@dataclass
class KeyValue:
    key: str = ""
    value: str = ""


@dataclass
class DiagnosticStatus:
    OK: ClassVar[bytes] = b"\x00"
    WARN: ClassVar[bytes] = b"\x01"
    ERROR: ClassVar[bytes] = b"\x02"

    level: bytes = OK
    name: str = ""
    message: str = ""
    hardware_id: str = ""
    values: list[KeyValue] = field(default_factory=list)


@dataclass
class DiagnosticArray:
    status: list[DiagnosticStatus] = field(default_factory=list)
    header: Any = field(default_factory=SimpleNamespace)
