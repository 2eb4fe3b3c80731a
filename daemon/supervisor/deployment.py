"""Deployment of a model version, and the error of an engine that could not start it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Deployment:
    """A package, its version and the device on which an engine runs it."""

    package: Path
    version: str
    device: str
    #: The sender's name for a package that does not declare one.
    called: str = field(default="", compare=False)


class EngineStartError(Exception):
    """An engine failed to start: the stage, and the model's error."""

    def __init__(self, stage: str, error: str, message: str) -> None:
        super().__init__(f"{stage} failed: {error}: {message}")
        self.stage = stage
        self.error = error
        self.message = message
