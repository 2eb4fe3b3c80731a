"""Linux capabilities of this process, as far as the kernel counts them for the whole machine."""

from __future__ import annotations

from pathlib import Path

IPC_LOCK = 14
SYS_NICE = 23
#: The user namespace that a machine starts with: each user is itself.
_FIRST_NAMESPACE = ["0", "0", "4294967295"]


def has_capability(number: int, process: Path = Path("/proc/self")) -> bool:
    """Return whether the process has the capability for the whole machine.

    In another user namespace (a rootless container) root has every capability, and the kernel ignores those that concern
    the machine's memory and processors.
    """
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    effective = int(status["CapEff"], 16) >> number & 1
    return bool(effective) and (process / "uid_map").read_text().split() == _FIRST_NAMESPACE
