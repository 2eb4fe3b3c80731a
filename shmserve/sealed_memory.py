"""Check of another process's memory before it is mapped: a peer that shrinks a mapped file kills the process that maps it.

A process that touches a page beyond the end of a file dies of SIGBUS. The seals of a memfd exclude that for good, so each
side checks them before it maps the other side's memory. It checks the seals before the size, because only a sealed file
keeps its size.
"""

from __future__ import annotations

import fcntl
import mmap
import os

_F_SEAL_FUTURE_WRITE = 0x10  # <linux/fcntl.h>; Python 3.10 has no name for it
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def seal(descriptor: int) -> None:
    """Seal this memfd: its size and its seals can no longer change."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)


def unsafe_to_map(descriptor: int, *, writable: bool) -> str | None:
    """Return why a descriptor of another process is unsafe to map, as the end of a sentence; None: it is safe.

    >>> descriptor = os.memfd_create("doctest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    >>> unsafe_to_map(descriptor, writable=True)
    'is not sealed: its sender could shrink it, and kill the process that maps it'
    >>> seal(descriptor)
    >>> unsafe_to_map(descriptor, writable=True)
    >>> os.close(descriptor)
    """
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return "is not a memfd"
    if seals & SEALS != SEALS:
        return "is not sealed: its sender could shrink it, and kill the process that maps it"
    if os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
        return "consists of huge pages, of which the system can run out when they are touched"
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == os.O_WRONLY or (writable and mode != os.O_RDWR):
        return f"is not open for {'writing' if writable and mode != os.O_WRONLY else 'reading'}"
    if writable and seals & (fcntl.F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE):
        return "is sealed against writing"
    return None
