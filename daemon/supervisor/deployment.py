"""What an engine runs, and how it fails to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Deployment:
    """A model as one engine runs it."""

    package: Path
    version: str
    device: str
    #: What the package's sender called it, for a package that gives itself no name.
    called: str = field(default="", compare=False)


class EngineStartError(Exception):
    """An engine did not get to serve: at which stage, and the model's own error."""

    def __init__(self, stage: str, error: str, message: str) -> None:
        super().__init__(f"{stage} failed: {error}: {message}")
        self.stage = stage
        self.error = error
        self.message = message
