"""No server at all: the policy called in the client's own process, what every way to ask it comes on top of."""

from __future__ import annotations

from .peer import Infer
from .policy import Policy


class InProcess:
    """The peer that every other is compared with."""

    name = "in-process"

    def start(self) -> None:
        """There is nothing to start."""

    def connect(self) -> Infer:
        return Policy().infer

    def stop(self) -> None:
        """There is nothing to stop."""

    def available(self) -> str | None:
        return None

    def server_pids(self) -> list[int]:
        return []
