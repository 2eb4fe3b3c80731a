"""Policy called in the client's process without a server: the cost to which every other way adds."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bench.workloads import Asked

from .peer import Infer
from .policy import Policy


class InProcess:
    """Peer without a server."""

    name = "in-process"
    environment: Mapping[str, str] = MappingProxyType({})

    def expect(self, asked: Asked) -> None:
        """Do nothing: the policy takes any observation."""

    def start(self) -> None:
        """Do nothing: this peer has no server."""

    def connect(self) -> Infer:
        return Policy().infer

    def stop(self) -> None:
        """Do nothing: this peer has no server."""

    def available(self) -> str | None:
        return None

    def server_pids(self) -> list[int]:
        return []
