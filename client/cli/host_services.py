"""Services of this host, found without starting, stopping or changing one.

A service is a directory with its sockets in a runtime directory, a systemd unit, or both. A daemon holds the lock of its
directory, which /proc/locks shows to everybody. Only such a daemon is asked for its status: a call on a socket of systemd
would start the service. Nothing is sent to another user's daemon (service_owner.py), of which the kernel tells enough.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shmserve.directories import (
    ADMIN_SOCKET,
    CLIENT_SOCKET,
    ServicePlace,
    check_service_name,
    runtime_directories,
    service_place,
)
from shmserve.errors import ServiceUnavailable, ShmServeError
from shmserve.service_owner import foreign_place, user_name
from shmserve.varlink import VarlinkError

from .connection import AdminConnection

#: For a daemon's answer: it answers at once, unless it was stopped (SIGSTOP) or hangs.
_ANSWER_S = 3.0
#: Entries of one runtime directory that are looked at: another user may have made any number.
_MOST_NAMES = 1000
_SYSTEM_UNITS = (Path("/etc/systemd/system"), Path("/run/systemd/system"))
_UNIT_LINK = re.compile(r"shmserved@(.+)\.(?:service|socket)")
_LISTENS = 0x10000  # __SO_ACCEPTCON in /proc/net/unix


@dataclass(frozen=True)
class HostService:
    """One service; a field is None where this user may not see it, or where there is none."""

    name: str
    directory: Path
    #: A state of the daemon (`ready`, `loading` ...), or `running`, `waiting`, `stopped`, `stale`, `hidden`.
    state: str
    #: What `state` means here, and what to do, where that is not clear from the word.
    note: str = ""
    pid: int | None = None
    uid: int | None = None
    #: The model's name and version.
    model: tuple[str, str] | None = None
    #: When its daemon began, as seconds since 1970.
    since_s: float | None = None
    #: The installed unit: `system`, `user` or None.
    unit: str | None = None
    #: Whether `pid` names a process here, and not one of a container's own numbers.
    is_of_this_proc: bool = False

    def to_json(self) -> dict[str, Any]:
        model = None if self.model is None else dict(zip(("name", "version"), self.model, strict=True))
        return {
            "name": self.name,
            "directory": str(self.directory),
            "state": self.state,
            "note": self.note,
            "pid": self.pid,
            "uid": self.uid,
            "user": None if self.uid is None else user_name(self.uid),
            "model": model,
            "since_s": self.since_s,
            "unit": self.unit,
        }


def host_services(runtime_dir: str | None = None) -> list[HostService]:
    """Return the services of this host by name; with `runtime_dir` those in that directory alone."""
    units = {} if runtime_dir is not None else installed_units()
    places = [
        replace(each, directory=each.directory / name)
        for each in runtime_directories(runtime_dir)
        for name in _names_in(each.directory)
    ]
    found = [find_service(place, units.get(place.directory)) for place in places]
    seen = {place.directory for place in places}
    for directory, unit in units.items():
        if directory not in seen:
            found.append(HostService(directory.name, directory, "stopped", unit=unit))
    return sorted(found, key=lambda service: (service.name, service.directory))


def service_here(name: str, runtime_dir: str | None) -> HostService:
    """Return the service that `--name` and `--runtime-dir` mean, `absent` if there is none."""
    place = service_place(name, runtime_dir)
    unit = installed_units().get(place.directory)
    if not os.path.lexists(place.directory):
        return HostService(name, place.directory, "stopped" if unit else "absent", unit=unit)
    return find_service(place, unit)


def find_service(place: ServicePlace, unit: str | None) -> HostService:
    """Return what can be seen of the service in this directory."""
    service = HostService(place.directory.name, place.directory, "hidden", unit=unit)
    try:
        service = replace(service, uid=place.directory.stat().st_uid)
        lock = _lock_of(place.directory / "lock")
        listens = _is_listening(place.directory)
    except OSError as error:
        return replace(service, note=f"{error.strerror}: its user or root sees more")
    if lock is not None:
        return _asked(replace(service, state="running", pid=lock, since_s=_began_s(lock), is_of_this_proc=True), place)
    if listens and unit is not None:
        return replace(service, state="waiting", note="systemd listens, and starts it for the next client")
    if listens or _accepts(place.directory / ADMIN_SOCKET):
        return _asked(replace(service, state="running"), place)  # of another pid namespace, a container's
    if unit is not None:
        return replace(service, state="stopped")
    # A command for the owner alone: another user could put a link in the place of a directory that root is to remove.
    remedy = f": rm -r {place.directory}" if service.uid == os.geteuid() else ""
    return replace(service, state="stale", note=f"left by a daemon that ended{remedy}")


def _asked(service: HostService, place: ServicePlace) -> HostService:
    """Return the service with the state and the model that its daemon reports, if this user may ask it."""
    if not place.named and foreign_place(place):
        return replace(
            service, note=f"another user's, not asked: name its directory (--runtime-dir {place.directory.parent})"
        )
    connection = AdminConnection(service.name, None, place=place)
    try:
        connection.open(_ANSWER_S)
        status = connection.call("Status", timeout_s=_ANSWER_S)["status"]
    except TimeoutError:
        return replace(service, note="its daemon does not answer")
    except PermissionError:
        return replace(service, note="may not be asked by this user: use sudo, or join its group")
    except (OSError, ServiceUnavailable):
        return replace(service, note="its daemon has just ended or is just starting")
    except (VarlinkError, ShmServeError) as error:
        return replace(service, note=str(error))
    finally:
        connection.close()
    return with_status(service, status)


def with_status(service: HostService, status: dict[str, Any]) -> HostService:
    """Return the service as its daemon describes it."""
    model = status["model"]
    return replace(
        service,
        state=str(status["state"]),
        note=str(status["error"] or ""),
        pid=int(status["pid"]),
        model=None if model is None else (str(model["name"]), str(model["version"])),
        since_s=service.since_s or time.time() - float(status["uptime_s"]),
    )


# Files and the kernel


def installed_units() -> dict[Path, str]:
    """Return the enabled services of systemd by their directory: `system`, or `user` for those of the calling user."""
    found = {service_place(name, "/run/shmserve").directory: "system" for name in _enabled(_SYSTEM_UNITS)}
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    return found | {runtime / "shmserve" / name: "user" for name in _enabled([home / "systemd/user"])}


def _enabled(folders: Iterable[Path]) -> Iterator[str]:
    for folder in folders:
        with suppress(OSError):
            for link in folder.glob("*.wants/shmserved@*"):
                if (match := _UNIT_LINK.fullmatch(link.name)) and _is_name(match[1]):
                    yield match[1]


def _names_in(directory: Path) -> list[str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return sorted(name for name in names[:_MOST_NAMES] if _is_name(name) and _is_service(directory / name))


def _is_service(directory: Path) -> bool:
    """Whether this is a service's directory, or one that this user may not enter."""
    try:
        if not stat.S_ISDIR(directory.stat().st_mode):
            return False
        return any(
            os.path.lexists(directory / file) for file in ("lock", ADMIN_SOCKET, CLIENT_SOCKET)
        ) or not os.access(directory, os.X_OK)
    except OSError:
        return False


def _is_name(name: str) -> bool:
    try:
        check_service_name(name)
    except ValueError:  # another user's folder may have any name
        return False
    return True


def _lock_of(path: Path) -> int | None:
    """The pid of the daemon that holds this lock, or None. Raises PermissionError for a directory that may not be entered."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    with suppress(OSError):
        return lock_holder(Path("/proc/locks").read_text(), found.st_dev, found.st_ino)
    return None


def lock_holder(locks: str, device: int, inode: int) -> int | None:
    """Return the pid that holds a flock(2) of this file, from the text of /proc/locks.

    >>> lock_holder("1: FLOCK  ADVISORY  WRITE 4321 00:1a:77 0 EOF\\n2: POSIX  ADVISORY  READ 9 00:1a:78 0 EOF\\n", 26, 77)
    4321
    """
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    for line in locks.splitlines():
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == place and words[4].isdigit():
            return int(words[4]) or None
    return None


def _is_listening(directory: Path) -> bool:
    with suppress(OSError):
        return not listening_paths(Path("/proc/net/unix").read_text()).isdisjoint(
            str(directory / file) for file in (ADMIN_SOCKET, CLIENT_SOCKET)
        )
    return False


def listening_paths(sockets: str) -> frozenset[str]:
    """Return the paths of listening sockets, from the text of /proc/net/unix."""
    found = set()
    for line in sockets.splitlines()[1:]:
        words = line.split(maxsplit=7)
        if len(words) == 8 and int(words[3], 16) & _LISTENS:
            found.add(words[7])
    return frozenset(found)


def _accepts(path: Path) -> bool:
    """Whether a process listens there. It is not called: the connection is closed at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:  # its backlog is full
            return True
        except OSError:
            return False
    return True


def _began_s(pid: int) -> float | None:
    """When the process began, as seconds since 1970."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
