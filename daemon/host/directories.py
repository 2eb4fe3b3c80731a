"""Makes the daemon's directories with the same modes whatever the umask, and finds those that others could change."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from shmserve.service_owner import others_may_change


def make_directories(directory: Path) -> None:
    """`directory` as 0700 and what is missing above it as 0755; what exists stays as it is."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    for each in reversed(missing):
        try:
            each.mkdir(mode=0o700)
        except FileExistsError:  # another process's by now, perhaps another user's link: not ours to change
            continue
        # A umask may have taken more away than meant, and leaves nothing: the mode above is not in its hands.
        each.chmod(0o700 if each == directory else 0o755)


def check_unchangeable(directory: Path) -> None:
    """Raises PermissionError if another user can rename what is in `directory`, and so put something in its place."""
    link, found = directory.lstat(), directory.stat()
    mode = found.st_mode
    others_write = others_may_change(found, (os.getgid(),)) and not mode & stat.S_ISVTX
    strangers = {link.st_uid, found.st_uid} - {0, os.getuid()}
    if others_write or strangers:
        raise PermissionError(
            f"{directory} belongs to uid {max(strangers, default=found.st_uid)} and gid {found.st_gid} and has mode {stat.S_IMODE(mode):04o}: "
            "others could replace what this daemon keeps in it; make it this user's or root's, and writable by nobody "
            "else, or choose another directory"
        )
