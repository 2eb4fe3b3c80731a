"""Memory fence between processes, for CPUs that reorder stores.

Python has no fence. x86 keeps stores in order and loads in order, so there `fence` does nothing;
elsewhere (ARM) it is a release and an acquire of a private semaphore, which POSIX lists among the
functions that synchronise memory (XBD 4.12).
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable

#: glibc's sem_t is 32 bytes on every 64-bit Linux.
_SEM_T_BYTES = 32


def semaphore_fence() -> Callable[[], None]:
    """A fence made of a private, unnamed semaphore."""
    libc = ctypes.CDLL(None, use_errno=True)
    semaphore = ctypes.create_string_buffer(_SEM_T_BYTES)
    pointer = ctypes.c_void_p(ctypes.addressof(semaphore))
    if libc.sem_init(pointer, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "sem_init")
    post, wait = libc.sem_post, libc.sem_trywait

    def fence(_keep_alive: object = semaphore) -> None:
        post(pointer)
        wait(pointer)

    return fence


def no_fence() -> None:
    """Total store order: the processor keeps the order by itself."""


#: Whether the processor keeps the order by itself: then the path of a request leaves the call away, too.
IN_ORDER = platform.machine() in ("x86_64", "AMD64")
fence: Callable[[], None] = no_fence if IN_ORDER else semaphore_fence()
