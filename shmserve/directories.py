"""Directories of a service's sockets and files, by the same rules for the daemon, its clients and its operator."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

CLIENT_SOCKET = "client.sock"
ADMIN_SOCKET = "admin.sock"
_SYSTEM_RUNTIME = Path("/run/shmserve")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_service_name(name: str) -> str:
    """`name` itself; raises ValueError for what cannot name a service."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"service name {name!r}: 1 to 64 letters, digits, '_', '.' or '-', beginning with a letter or a digit"
        )
    return name


def daemon_runtime_directory(flag: str | os.PathLike[str] | None = None) -> Path:
    """Where a daemon puts its services' sockets: the flag, SHMSERVE_RUNTIME_DIR, systemd's, the user's."""
    return _chosen(flag, "SHMSERVE_RUNTIME_DIR", "RUNTIME_DIRECTORY") or _user_runtime()


def daemon_state_directory(flag: str | os.PathLike[str] | None = None) -> Path:
    """Where a daemon keeps model versions: the flag, SHMSERVE_STATE_DIR, systemd's, the user's."""
    chosen = _chosen(flag, "SHMSERVE_STATE_DIR", "STATE_DIRECTORY")
    if chosen is not None:
        return chosen
    if state_home := os.environ.get("XDG_STATE_HOME"):
        return Path(state_home) / "shmserve"
    if home := os.environ.get("HOME"):
        return Path(home) / ".local" / "state" / "shmserve"
    return _private_temporary()


@dataclass(frozen=True)
class ServicePlace:
    """The directory of one service's sockets, and who chose it: that decides whose daemon may answer (service_owner.py)."""

    directory: Path
    #: The caller or SHMSERVE_RUNTIME_DIR named the runtime directory.
    named: bool = False
    #: It is under /run/shmserve, where only root makes directories.
    system: bool = False


def service_place(name: str, flag: str | os.PathLike[str] | None = None) -> ServicePlace:
    """Where a client or an operator finds the sockets of service `name`.

    As the daemon's rule, but with the system's services (/run/shmserve) before the user's own.
    """
    check_service_name(name)
    chosen = _chosen(flag, "SHMSERVE_RUNTIME_DIR", None)
    if chosen is not None:
        return ServicePlace(chosen / name, named=True)
    if (_SYSTEM_RUNTIME / name).is_dir():
        return ServicePlace(_SYSTEM_RUNTIME / name, system=True)
    return ServicePlace(_user_runtime() / name)


def runtime_directories(flag: str | os.PathLike[str] | None = None) -> list[ServicePlace]:
    """Where this host's daemons put their services: each runtime directory as the `directory` of a place.

    With a flag that one alone; else SHMSERVE_RUNTIME_DIR, the system's, this user's and other users' usual ones.
    """
    chosen = _chosen(flag, "SHMSERVE_RUNTIME_DIR", None)
    found = {chosen: ServicePlace(chosen, named=True)} if chosen is not None else {}
    if flag is not None:
        return list(found.values())
    found.setdefault(_SYSTEM_RUNTIME, ServicePlace(_SYSTEM_RUNTIME, system=True))
    others = [Path("/run/user") / name / "shmserve" for name in _numbers_in(Path("/run/user"), "")]
    temporary = _private_temporary().parent
    others += [temporary / f"shmserve-{name}" for name in _numbers_in(temporary, "shmserve-")]
    for directory in (_user_runtime(), *others):
        found.setdefault(directory, ServicePlace(directory))
    return list(found.values())


def _numbers_in(directory: Path, prefix: str) -> list[str]:
    try:
        names = [name.removeprefix(prefix) for name in os.listdir(directory) if name.startswith(prefix)]
    except OSError:
        return []
    return sorted(name for name in names if name.isascii() and name.isdigit())


def service_directory(name: str, flag: str | os.PathLike[str] | None = None) -> Path:
    """The directory of `service_place`."""
    return service_place(name, flag).directory


def _chosen(flag: str | os.PathLike[str] | None, own: str, systemd: str | None) -> Path | None:
    if flag is not None:
        return Path(flag)
    if value := os.environ.get(own):
        return Path(value)
    # systemd separates several directories by colons; the first is the service's own.
    if systemd is not None and (value := os.environ.get(systemd)):
        return Path(value.split(":")[0])
    return None


def _user_runtime() -> Path:
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "shmserve"
    return _private_temporary()


def _private_temporary() -> Path:
    # Another user can make this name first. The daemon checks owner and mode of what it finds there (service_lock.py),
    # clients and operators check the owners and the daemon's uid (service_owner.py).
    import tempfile  # only here: shmserve-admin starts sooner without it

    return Path(tempfile.gettempdir()) / f"shmserve-{os.getuid()}"
