"""Base of the clients that stand in for another policy server's own: host argument, connection, context manager."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from shmserve.errors import InvalidArgument, ServiceUnavailable

from ..retry_policy import RetryPolicy
from ..shm_client import ShmClient

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

#: The timeout ends the retries, never their number; a ban is waited out like any other outage.
_RETRY = RetryPolicy(math.inf, 0.2, outlasts_bans=True)
#: One attempt to connect, of as many as there is time for.
_ATTEMPT_S = 1.0
_SHM, _UNIX = "shm://", "unix:"
#: The hosts in these clients' own defaults and examples; any other host names another machine.
_LOCAL = re.compile(r"(wss?://|tcp://)?(0\.0\.0\.0|\*|localhost|127\.[\d.]+|::1|\[::1?\])(:\d+)?/?")


class Address(NamedTuple):
    """A service, and its directory if the argument names one."""

    service: str
    runtime_dir: Path | None = None

    def __str__(self) -> str:
        return f"{_SHM}{self.service}" if self.runtime_dir is None else f"{_UNIX}{self.runtime_dir / self.service}"


def address_of(host: str, port: int | None) -> Address:
    """Translate a host argument: `shm://NAME`, `unix:DIRECTORY/NAME`, or a network host, which means `default`.

    A network host and port are accepted, because programs pass them, and ignored; a host that is not this one is
    logged as a warning.

    >>> address_of("shm://arm", 8000).service, str(address_of("unix:/run/shmserve/arm/client.sock", None))
    ('arm', 'unix:/run/shmserve/arm')
    >>> address_of("0.0.0.0", 8000)
    Address(service='default', runtime_dir=None)
    """
    if not isinstance(host, str):
        raise InvalidArgument(f"host = {host!r}: a str is needed, as 'shm://default'")
    if host.startswith(_SHM):
        name = host[len(_SHM) :].rstrip("/")
        if not name or "/" in name:
            raise InvalidArgument(f"host = {host!r}: shm://NAME names a service of this host, as in shm://default")
        return Address(name)
    if host.startswith(_UNIX):
        path = Path(re.sub("/+", "/", host[len(_UNIX) :]))
        folder = path.parent if path.suffix == ".sock" else path
        if not folder.is_absolute() or not folder.name:
            raise InvalidArgument(f"host = {host!r}: unix:DIRECTORY/NAME, as in unix:/run/shmserve/default")
        return Address(folder.name, folder.parent)
    if not _LOCAL.fullmatch(host):
        where = host if port is None else f"{host}:{port}"
        log.warning("%s is not asked: service 'default' of this host is (say which with shm://NAME)", where)
    return Address("default")


class DropInClient:
    """Owns the ShmClient behind another policy server's client."""

    def __init__(self, host: str, port: int | None, timeout: float, runtime_dir: str | os.PathLike[str] | None) -> None:
        self._address = address_of(host, port)
        self._client = ShmClient(
            self._address.service,
            runtime_dir=self._address.runtime_dir or runtime_dir,
            timeout=timeout,
            max_retries=int(timeout / _RETRY.delay_s) + 1,  # the timeout ends the retries
            retry_delay=_RETRY.delay_s,
        )

    def close(self) -> None:
        """Give the channel back. May be called twice."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _await_model(
        self, deadline_ns: float, report: Callable[[ServiceUnavailable], object] = lambda error: None
    ) -> dict[str, Any]:
        """Return the model's description as soon as there is one; raises ServiceUnavailable at the deadline.

        `report` gets the error of each attempt that failed.
        """

        def attempt() -> dict[str, Any]:
            remaining_s = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
            self._client.connect(timeout=min(_ATTEMPT_S, remaining_s))
            return self._client.describe()

        def pause(error: ServiceUnavailable) -> None:
            report(error)
            time.sleep(_RETRY.delay_s)

        return _RETRY.run(attempt, deadline_ns, pause)
