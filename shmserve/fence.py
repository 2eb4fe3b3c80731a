"""Memory fences between processes, for the orders that Python code keeps.

Python has no fence. An x86-64 keeps stores in order and loads in order, so there `fence` does nothing. It lets a load
overtake an earlier store, so `full_fence` is a real one everywhere: a release and an acquire of a private semaphore, which
POSIX lists among the functions that synchronise memory (XBD 4.12).
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable

#: glibc's sem_t is 32 bytes on every 64-bit Linux.
_SEM_T_BYTES = 32
_TOTAL_STORE_ORDER = "x86_64"
#: Processors, as `platform.machine` names them, for which the order of the pure backend is checked.
CHECKED_PROCESSORS = (_TOTAL_STORE_ORDER, "aarch64")


class UnsupportedProcessor(ImportError):
    """The pure backend is not checked for this processor."""


def semaphore_fence() -> Callable[[], None]:
    """A full fence made of a private, unnamed semaphore."""
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


def is_in_order(machine: str) -> bool:
    """Return whether this processor keeps the order of stores, and that of loads, by itself."""
    return machine == _TOTAL_STORE_ORDER


def check_processor(machine: str) -> None:
    """Raise UnsupportedProcessor unless the pure backend is checked for this processor."""
    if machine not in CHECKED_PROCESSORS:
        raise UnsupportedProcessor(
            f"shmserve in pure Python keeps shared memory in order on {' and '.join(CHECKED_PROCESSORS)}; this processor "
            f"is {machine}. Use the native core: install gcc and the Python headers (apt-get install gcc python3-dev), "
            "unset SHMSERVE_PURE, and install shmserve again"
        )


#: Whether the processor keeps the order by itself: then the path of a request omits the call, too.
IN_ORDER = is_in_order(platform.machine())
#: Keeps also a load behind an earlier store of another word.
full_fence: Callable[[], None] = semaphore_fence()
fence: Callable[[], None] = no_fence if IN_ORDER else full_fence
