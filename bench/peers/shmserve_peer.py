"""Peers for shmserve: the defaults of its README, and each of its main options."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from bench.service import Service

from .peer import Infer, is_installed

POLICY = Path(__file__).with_name("policy.py")


class Shmserve:
    """Peer with the defaults: the engine copies the observation once, both sides spin while news is likely."""

    name = "shmserve"
    in_place = False
    spin_us: int | Literal["adaptive"] = "adaptive"
    transport = "named"

    def __init__(self) -> None:
        self.address = ""
        self._service: Service | None = None

    def available(self) -> str | None:
        missing = [package for package in ("torch", "posix_ipc") if not is_installed(package)]
        return f"not installed: {', '.join(missing)} (pip install 'shmserve[daemon]')" if missing else None

    def start(self) -> None:
        self._service = Service(
            POLICY,
            model={"arrays": "numpy", "read_in_place": self.in_place},
            settings={"spin_us": self.spin_us, "transport": self.transport},
        )
        self._service.start()
        self.address = str(self._service.runtime_dir)

    def connect(self) -> Infer:
        from shmserve.client import ShmClient

        return ShmClient(runtime_dir=self.address, timeout=60.0, spin_us=self.spin_us).connect().infer

    def stop(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            service.stop()

    def server_pids(self) -> list[int]:
        return self._service.pids() if self._service is not None else []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_service": None}


class ShmserveInPlace(Shmserve):
    """Peer whose model reads the client's slot: `read_in_place = true` in model.toml."""

    name = "shmserve-in-place"
    in_place = True


class ShmserveSealed(Shmserve):
    """Peer for clients that are not trusted: sealed memory, and a pipe as the doorbell."""

    name = "shmserve-sealed"
    transport = "sealed"


class ShmserveBlocking(Shmserve):
    """Peer of which neither side spins, for a machine whose processors have other work."""

    name = "shmserve-blocking"
    spin_us = 0
