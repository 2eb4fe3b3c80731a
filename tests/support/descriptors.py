"""Which descriptors of a process its children would inherit."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def inheritable(pid: int) -> dict[int, str]:
    """What execve(2) would leave open beside the standard three, and what it is."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/fdinfo/{name}").read_text().splitlines()[:2])
            if int(name) > 2 and not int(lines["flags"], 8) & os.O_CLOEXEC:
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found
