"""Peers for shmserve: the defaults of its README, and each of its main options."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from bench.service import Service
from bench.workloads import Asked

from .peer import Infer, is_installed

if TYPE_CHECKING:
    from shmserve.client import ShmClient

POLICY = Path(__file__).with_name("policy.py")
MAX_AGE_S = 10.0  # Longer than any request here takes.


class Shmserve:
    """Peer with the defaults: the engine copies the observation once, both sides spin while news is likely."""

    name = "shmserve"
    in_place = False
    spin_us: int | Literal["adaptive"] = "adaptive"
    transport = "named"
    #: Keys of model.toml, beside those below.
    model: Mapping[str, str] = MappingProxyType({})
    #: Settings of the daemon, beside those above.
    settings: Mapping[str, int | str] = MappingProxyType({})
    environment: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        self.address = ""
        self._service: Service | None = None

    def available(self) -> str | None:
        missing = [package for package in ("torch", "posix_ipc") if not is_installed(package)]
        return f"not installed: {', '.join(missing)} (pip install 'shmserve[daemon]')" if missing else None

    def expect(self, asked: Asked) -> None:
        """Do nothing: the daemon takes any observation."""

    def start(self) -> None:
        self._service = Service(
            POLICY,
            model={"arrays": "numpy", "read_in_place": self.in_place, **self.model},
            settings={"spin_us": self.spin_us, "transport": self.transport, **self.settings},
            environment=self.environment,
        )
        self._service.start()
        self.address = str(self._service.runtime_dir)

    def connect(self) -> Infer:
        return self.client().infer

    def client(self) -> ShmClient:
        """Return a client that is attached."""
        from shmserve.client import ShmClient

        return ShmClient(runtime_dir=self.address, timeout=60.0, spin_us=self.spin_us).connect()

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


class ShmserveMaxAge(Shmserve):
    """Peer whose client says how old its observation may be when the model gets it."""

    name = "shmserve-max-age"

    def connect(self) -> Infer:
        return partial(self.client().infer, max_age=MAX_AGE_S)


class ShmservePure(Shmserve):
    """Peer without the native core on either side."""

    name = "shmserve-pure"
    environment: Mapping[str, str] = MappingProxyType({"SHMSERVE_PURE": "1"})
