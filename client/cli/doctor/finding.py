"""Result of one check: its level, the finding, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Level(Enum):
    """Level of a finding; the values are the words of the output."""

    OK = "ok"
    #: The service works, and is slower, later or more limited than it could be.
    WARNING = "warning"
    #: The service does not work, or not as its settings say.
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """Result of the check `check`. A warning and a problem have a remedy: a command, or where to change what."""

    check: str
    level: Level
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"check": self.check, "level": self.level.value, "found": self.found, "remedy": self.remedy}


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.OK, found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.WARNING, found, remedy)


def problem(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Level.PROBLEM, found, remedy)


@dataclass(frozen=True)
class Needs:
    """What the service asks of the machine: the settings of the daemon that runs, or their defaults."""

    transport: str = "named"
    device: str = "cpu"
    max_clients: int = 64
    lock_memory: bool = False
    engine_priority: int = 0

    @property
    def wants_gpu(self) -> bool:
        return self.device.startswith("cuda")
