"""Lock of the engine's memory: no page that a request has touched is swapped out or dropped until the engine ends.

An engine locks its memory once its model is warm, so that every page of a request is present by then. The lock ends with the process,
and processes that the policy starts do not inherit it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource

from ..host.capabilities import IPC_LOCK, has_capability

log = logging.getLogger(__name__)

_MCL_CURRENT, _MCL_FUTURE = 1, 2
#: Lock a page when it is first touched. Without it the kernel reads every mapped page at once, now and in each later mapping:
#: all of torch's libraries, the unused part of each thread's stack, and the address space that CUDA reserves. For a small
#: model that is 404 MiB and 0.2 s more (PyTorch on the CPU), of which requests use nothing.
_MCL_ONFAULT = 4


def lock_memory() -> bool:
    """Lock the present and all future pages of this process; return False, after a warning with the remedy, if that fails."""
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    problem = limit_problem(limit_bytes, has_capability(IPC_LOCK))
    if problem is None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0:
            return True
        problem = f"mlockall failed ({os.strerror(ctypes.get_errno())})"
    log.warning(
        "lock_memory = true has no effect, and the engine serves with memory that the kernel may swap out: %s; set "
        "LimitMEMLOCK=infinity in the unit (the drop-in realtime.conf has it), or docker run --ulimit memlock=-1",
        problem,
    )
    return False


def limit_problem(limit_bytes: int, is_exempt: bool) -> str | None:
    """Return why memory must not be locked under this RLIMIT_MEMLOCK, or None.

    The kernel counts the whole address space of a locked process, so any finite limit is soon reached. Then every later
    allocation and every client's channel would fail while the engine serves; a lock that never began is better.
    """
    if limit_bytes == resource.RLIM_INFINITY or is_exempt:
        return None
    return f"RLIMIT_MEMLOCK is {limit_bytes} bytes, and allocations above it would fail"
