"""Memory headroom in the control groups (version 2) of this process.

Shared memory is charged to the group of the process that allocates it, which is the supervisor. Past the limit the kernel
returns no error: it kills a process of the group, and as that frees no shared memory, the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Channels leave this fraction (1/n) of a limit to the engines, whose needs are not known in advance.
_ENGINES_SHARE = 8
#: In memory.stat: pages of files, which the kernel reclaims before it kills a process.
_RECLAIMABLE = ("inactive_file", "active_file")


@dataclass(frozen=True)
class Headroom:
    """Limit of a group, and the part of it that channels may still take, in bytes."""

    limit: int
    free: int


def group_without_headroom(needed_bytes: int, process: Path = Path("/proc/self")) -> Headroom | None:
    """Return the headroom of the first cgroup of this process that has too little of it, or None.

    A group whose files cannot be read is not limited.
    """
    for group in _groups(process):
        headroom = _headroom(group, needed_bytes)
        if headroom is not None and headroom.free < needed_bytes:
            return headroom
    return None


def _groups(process: Path) -> Iterator[Path]:
    """Yield the process's group and all above it that are visible in its mounts."""
    with contextlib.suppress(OSError):
        lines = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        own = next((path for number, _, path in lines if number == "0"), None)
        for line in (process / "mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            root, mounted = before.split()[3:5]
            if own is None or after.split()[0] != "cgroup2":
                continue
            # In a container the group's path is the host's, and the mount begins below it.
            group = Path(mounted, own.removeprefix(root if root != "/" else "").lstrip("/"))
            while group.is_relative_to(mounted):
                yield group
                group = group.parent


def _headroom(group: Path, needed_bytes: int) -> Headroom | None:
    try:
        limit = int((group / "memory.max").read_text())
        headroom = Headroom(limit, limit - limit // _ENGINES_SHARE - int((group / "memory.current").read_text()))
        if headroom.free >= needed_bytes:
            return headroom  # memory.stat takes the kernel a millisecond
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # the topmost group, one without the memory controller, or "max": not limited
        return None
    files = sum(int(count) for name, count in map(str.split, lines) if name in _RECLAIMABLE)
    return Headroom(limit, max(0, headroom.free + files))
