"""The daemon's directories: their modes, independent of the umask, and a check that other users cannot change them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from shmserve.service_owner import others_may_change


def make_directories(directory: Path) -> None:
    """Make `directory` with mode 0700 and missing parents with 0755; leave existing directories unchanged."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    for each in reversed(missing):
        try:
            each.mkdir(mode=0o700)
        except FileExistsError:  # another process has made it, or it is another user's link: left unchanged
            continue
        # The umask may have removed bits of the mode above.
        each.chmod(0o700 if each == directory else 0o755)


def check_unchangeable(directory: Path) -> None:
    """Raise PermissionError if another user can rename, and so replace, the files in `directory`."""
    link, found = directory.lstat(), directory.stat()
    mode = found.st_mode
    others_write = others_may_change(found, (os.getgid(),)) and not mode & stat.S_ISVTX
    strangers = {link.st_uid, found.st_uid} - {0, os.getuid()}
    if others_write or strangers:
        raise PermissionError(
            f"{directory} belongs to uid {max(strangers, default=found.st_uid)} and gid {found.st_gid} and has mode {stat.S_IMODE(mode):04o}: "
            "others could replace this daemon's files in it; make it owned by this user or root and writable by its "
            "owner only, or choose another directory"
        )
