"""A command that sees other folders in the place of this machine's, in mounts that end with it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="showing a program another folder takes root and unshare",
)


def seeing(
    folders: Mapping[str, Path], command: Sequence[str | Path], *, beside: bool = False, uid: int | None = None
) -> list[str]:
    """The command with these folders in the place of the machine's, `{"/run": tmp_path}`, or `beside` what is there.

    Sockets are reached in its place only. Run as `uid`, it is another user in name: it may read what root may.
    """
    mounts = [
        f"mount -t overlay -o lowerdir={there}:{place} overlay {place}" if beside else f"mount --bind {there} {place}"
        for place, there in ((shlex.quote(place), shlex.quote(str(there))) for place, there in folders.items())
    ]
    # Not of a mapped user namespace from the start: in one, most kernels mount nothing.
    user = ["unshare", "--user", f"--map-user={uid}"] if uid is not None else []
    words = shlex.join([*user, *map(str, command)])
    return ["unshare", "--mount", "sh", "-ec", "; ".join([*mounts, f"exec {words}"])]
