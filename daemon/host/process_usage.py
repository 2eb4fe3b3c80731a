"""Processor time and memory that one process uses: a reader of /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: Fields of /proc/PID/stat after the name, counted from the process's state.
_USER_TICKS, _SYSTEM_TICKS, _RESIDENT_PAGES = 11, 12, 21


@dataclass(frozen=True)
class ProcessUsage:
    """Use of all threads of a process since its start."""

    cpu_s: float
    #: Resident memory; shared memory counts in every process that has used it.
    resident_bytes: int


def process_usage(pid: int, proc: Path = Path("/proc")) -> ProcessUsage | None:
    """Return what a process has used; None if it has ended or may not be examined."""
    try:
        text = (proc / str(pid) / "stat").read_text()
        # The name in parentheses may hold spaces and parentheses.
        fields = text[text.rindex(")") + 2 :].split()
        ticks = int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])
        return ProcessUsage(ticks / _TICKS_PER_S, int(fields[_RESIDENT_PAGES]) * _PAGE_BYTES)
    except (OSError, ValueError, IndexError):
        return None
