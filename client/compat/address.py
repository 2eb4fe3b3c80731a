"""Which service of this host the host argument of another policy server's client means."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NamedTuple

from shmserve.errors import InvalidArgument

log = logging.getLogger(__name__)

_SHM, _UNIX = "shm://", "unix:"
#: What these clients' own defaults and examples say; anything else was meant for another machine.
_LOCAL = re.compile(r"(wss?://|tcp://)?(0\.0\.0\.0|\*|localhost|127\.[\d.]+|::1|\[::1?\])(:\d+)?/?")


class Address(NamedTuple):
    """A service, and where its directory is if the argument says so."""

    service: str
    runtime_dir: Path | None = None

    def __str__(self) -> str:
        return f"{_SHM}{self.service}" if self.runtime_dir is None else f"{_UNIX}{self.runtime_dir / self.service}"


def address_of(host: str, port: int | None) -> Address:
    """`shm://NAME` is service NAME, `unix:DIRECTORY/NAME` the one with these sockets, a network host `default`.

    A host and port of the network are accepted, because programs have them in their arguments, and not used; one that
    is not this host is warned of.

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
