"""Whether the control groups of this process leave it so much memory.

Shared memory counts for the group of whoever allocates it, which is the supervisor. Past the limit the kernel gives no
error: it kills a process of the group, and as that frees no shared memory, the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Of a limit: what channels leave to the engines, whose needs are not known before they ask.
_KEPT = 8
#: Version 1 says so in a number, close to the largest.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class _Controller:
    """The memory controller of version 2 of control groups, or of 1."""

    limit: str
    usage: str
    #: In memory.stat: pages of files, which the kernel gives up before it kills anybody.
    files: tuple[str, str]


_V2 = _Controller("memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = _Controller("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


@dataclass(frozen=True)
class Room:
    """What a group may have, and what may still be taken of it, both in bytes."""

    limit: int
    free: int


def without_room(wanted_bytes: int, process: Path = Path("/proc/self")) -> Room | None:
    """Of a group of this process that has not so much to give; None where all have, or nothing is known of them."""
    for group, controller in _groups(process):
        room = _room(group, controller, wanted_bytes)
        if room is not None and room.free < wanted_bytes:
            return room
    return None


def _groups(process: Path) -> Iterator[tuple[Path, _Controller]]:
    """The process's group and all above it, as far as they are to be seen from here."""
    with contextlib.suppress(OSError):
        paths = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
        for line in (process / "mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            root, mounted = before.split()[3:5]
            kind, _, options = after.split()[:3]
            if kind == "cgroup2":
                controller, mine = _V2, [path for number, _, path in paths if number == "0"]
            elif kind == "cgroup" and "memory" in options.split(","):
                controller, mine = _V1, [path for _, names, path in paths if "memory" in names.split(",")]
            else:
                continue
            for path in mine:
                # In a container the group's path is the host's, and what is mounted begins below.
                group = Path(mounted, path.removeprefix(root if root != "/" else "").lstrip("/"))
                while group.is_relative_to(mounted):
                    yield group, controller
                    group = group.parent


def _room(group: Path, controller: _Controller, wanted_bytes: int) -> Room | None:
    try:
        limit = int((group / controller.limit).read_text())
        if limit >= _NO_LIMIT:
            return None
        room = Room(limit, limit - limit // _KEPT - int((group / controller.usage).read_text()))
        if room.free >= wanted_bytes:
            return room  # memory.stat takes the kernel a millisecond
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # the topmost group, another controller's, or "max": no limit
        return None
    files = sum(int(count) for name, count in map(str.split, lines) if name in controller.files)
    return Room(limit, max(0, room.free + files))
