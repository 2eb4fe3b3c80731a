"""Peers for shmserve at a constant rate: each way in which the engine or the client may know when a request is due."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .peer import Infer
from .shmserve_peer import Shmserve

if TYPE_CHECKING:
    from shmserve.client import ShmClient

#: How long before a beat the client announces its request; it says that it will ask within that time.
AHEAD_NS = 1_500_000
WITHIN_S = AHEAD_NS / 1e9


class ShmserveAtRate(Shmserve):
    """Peer whose client has a rate: `ShmClient(rate=...)`."""

    name = "shmserve-rate"
    rate_hz: float = 50.0

    def available(self) -> str | None:
        from shmserve.client import ShmClient

        if "rate" not in inspect.signature(ShmClient).parameters:
            return "this shmserve has no ShmClient(rate=...)"
        return super().available()

    def client(self) -> ShmClient:
        from shmserve.client import ShmClient

        options: dict[str, Any] = {"rate": self.rate_hz}
        return ShmClient(runtime_dir=self.address, timeout=60.0, spin_us=self.spin_us, **options).connect()


class ShmserveWarm(ShmserveAtRate):
    """As ShmserveAtRate, with a policy that has a method `warm()`."""

    name = "shmserve-rate-warm"
    model: Mapping[str, str] = MappingProxyType({"entry": "policy:WarmPolicy"})


class ShmserveExpect(Shmserve):
    """Peer whose client announces each request shortly before it: `client.expect(within=...)`."""

    name = "shmserve-expect"
    ahead_ns = AHEAD_NS

    def available(self) -> str | None:
        from shmserve.client import ShmClient

        if not hasattr(ShmClient, "expect"):
            return "this shmserve has no ShmClient.expect"
        return super().available()

    def connect_with_announcement(self) -> tuple[Infer, Callable[[], object]]:
        """Return `infer`, and the call that announces the next request."""
        client: Any = self.client()
        return client.infer, lambda: client.expect(within=WITHIN_S)


class ShmserveNoWakeAhead(Shmserve):
    """Peer whose engine wakes with the request: `wake_ahead = "off"`."""

    name = "shmserve-no-wake-ahead"
    settings: Mapping[str, int | str] = MappingProxyType({"wake_ahead": "off"})

    def available(self) -> str | None:
        from shmserve.daemon.config.config import Config

        if "wake_ahead" not in {field.name for field in fields(Config)}:
            return "this shmserve has no setting wake_ahead"
        return super().available()
