"""Owner check: the users whose daemon may answer a client or an operator.

Another user can make `/tmp/shmserve-UID` first, and serve there under any name. So a caller that did not name the
runtime directory talks to a daemon of the same user or of root, and in /run/shmserve to the one whose directory root has
made. Directories and sockets are judged before connect(2), by their owners; the daemon after it, by what the kernel says
of the process that listens. The second counts: whatever is put in the place of a directory between the two, a stranger's
process has a stranger's uid. Nothing is sent before both.

The owners of a symbolic link and of its target are both judged: a stranger's link can lead to another service of this user.
The directory above the runtime directory may be anybody's: its owner can move what is in it, and cannot make it ours.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Container
from pathlib import Path

from .directories import ServicePlace
from .errors import ForeignService
from .varlink_connection import VarlinkConnection
from .varlink_socket import socket_path


def connect_to_service(
    place: ServicePlace, file: str, timeout_s: float, *, accept_fds: int = 0, how: str = "runtime_dir="
) -> tuple[VarlinkConnection, frozenset[int] | None]:
    """A connection to the socket `file` of the service, and the users to whom its memory may belong; None: anybody.

    `how` is how this caller's user names a runtime directory. Raises ForeignService, and what
    `VarlinkConnection.connect` raises.
    """
    path = place.directory / file
    socket_path(path)  # a path that no socket can have, before one that is not there
    owners = None if place.named else _owners(place, path, how)
    connection = VarlinkConnection.connect(path, timeout_s, accept_fds=accept_fds)
    try:
        if owners is not None and (uid := connection.peer_uid()) not in owners:
            refusal = _refusal(f"the daemon at {path} is a process of {user_words(uid)}", owners, how)
            raise ForeignService(refusal, path=str(path), owner_uid=uid)
    except BaseException:
        connection.close()
        raise
    return connection, owners


def user_words(uid: int) -> str:
    """A user's number, and the name if it has one.

    >>> user_words(0), user_words(4_000_000_000)
    ('uid 0 (root)', 'uid 4000000000')
    """
    name = user_name(uid)
    return f"uid {uid}" if name is None else f"uid {uid} ({name})"


def user_name(uid: int) -> str | None:
    """The name of a user; None if it has none."""
    import pwd  # only where something is refused or shown

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def others_may_change(found: os.stat_result, own_gids: Container[int] = ()) -> bool:
    """Whether the mode lets other users add to a directory. A group in `own_gids` does not count."""
    return bool(found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid not in own_gids))


def foreign_place(place: ServicePlace) -> bool:
    """Whether the directories of the service are refused; those that are missing are not."""
    try:
        _owners(place, place.directory, "")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _owners(place: ServicePlace, path: Path, how: str) -> frozenset[int]:
    """The users whose daemon may listen at `path`. Raises ForeignService, FileNotFoundError and the like."""
    owners = {0, os.geteuid()}
    runtime = place.directory.parent
    if place.system:
        owners |= _installed(runtime, place.directory)
    for directory in (runtime, place.directory):
        _check_owner(directory, owners, how)
        found = directory.stat()
        # In a sticky directory a user can replace only that user's entries, and an entry that a stranger adds has the stranger's uid.
        if others_may_change(found, (0,) if place.system else (0, os.getgid())) and not found.st_mode & stat.S_ISVTX:
            raise ForeignService(
                f"{directory} has mode {stat.S_IMODE(found.st_mode):04o}, so that other users can replace what is in it: "
                f"chmod go-w it, or name the runtime directory ({how} or SHMSERVE_RUNTIME_DIR)",
                path=str(directory),
                owner_uid=found.st_uid,
            )
    _check_owner(path, owners, how)
    return frozenset(owners)


def _installed(runtime: Path, directory: Path) -> set[int]:
    """The users to whom root has given the system's runtime directory, and this service's in it."""
    above, found = runtime.parent.stat(), runtime.stat()
    if above.st_uid not in (0, os.geteuid()) or others_may_change(above, (0,)):
        return set()
    if others_may_change(found, (0,)):
        return {found.st_uid}
    return {found.st_uid, directory.stat().st_uid}


def _check_owner(path: Path, owners: Collection[int], how: str) -> None:
    try:
        looks = (path.lstat(), path.stat())
    except PermissionError:
        if path.parent != path:
            _check_owner(path.parent, owners, how)  # a directory that only its owner may enter: a stranger's
        raise
    for found in looks:
        if found.st_uid not in owners:
            what = "link" if stat.S_ISLNK(found.st_mode) else "directory" if stat.S_ISDIR(found.st_mode) else "socket"
            refusal = _refusal(f"the {what} {path} belongs to {user_words(found.st_uid)}", owners, how)
            raise ForeignService(refusal, path=str(path), owner_uid=found.st_uid)


def _refusal(whose: str, owners: Collection[int], how: str) -> str:
    others = sorted(set(owners) - {0, os.geteuid()})
    expected = [user_words(uid) for uid in dict.fromkeys((os.geteuid(), *others, 0))]
    return (
        f"{whose}, expected {' or '.join(expected)}: another user can serve any model there. If this is the service that "
        f"you mean, name its runtime directory ({how} or SHMSERVE_RUNTIME_DIR); else have it removed"
    )
