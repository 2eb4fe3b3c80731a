"""Memory that the machine has left, and memory of one process: readers of files in /proc."""

from __future__ import annotations

import re
from pathlib import Path

_STALLED = re.compile(r"^some avg10=(\d+\.\d+)", re.MULTILINE)


def available_bytes(meminfo: str) -> int | None:
    """Return the bytes available without swapping, from the text of /proc/meminfo.

    The kernel's caches count as available: they take most of a machine's memory after a while, and the kernel releases
    them on demand.

    >>> available_bytes("MemTotal: 16 kB\\nMemAvailable:    7 kB\\n")
    7168
    """
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def stalled_percent(pressure: str) -> float:
    """Return the share of the last ten seconds in which some process waited for memory, from a text of pressure/memory.

    >>> stalled_percent("some avg10=12.50 avg60=3.00 avg300=0.10 total=99\\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9")
    12.5
    >>> stalled_percent("")
    0.0
    """
    found = _STALLED.search(pressure)
    return float(found[1]) if found else 0.0


def private_bytes(pid: int) -> int | None:
    """Return the memory that would be free without this process; None if it has ended or may not be examined."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
