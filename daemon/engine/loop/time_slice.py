"""Short scheduler time slices for the engine's threads, so that the kernel runs them sooner when they wake.

An engine sleeps between requests. Where other programs keep every CPU busy it would wait at each wake-up for the end of
their time slice, some milliseconds. A short time slice does not increase its CPU share. It needs Linux 6.12 or later;
earlier kernels ignore it.

Processes and threads that the policy starts later have the default time slice again (reset on fork), unless
the operator gave the service a niceness below 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct

#: The shortest time slice that the kernel accepts.
TIME_SLICE_NS = 100_000
#: SCHED_FLAG_RESET_ON_FORK of sched_setattr(2).
_RESET_ON_FORK = 1
#: System call number by machine: glibc has had a function for sched_setattr(2) only since 2.41.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
#: struct sched_attr: size, policy, flags, nice, priority, runtime (for SCHED_OTHER: the time slice), deadline, period.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


def request_time_slice(turn_ns: int = TIME_SLICE_NS, thread: int = 0) -> bool:
    """Request a time slice for this thread; return False if that fails or the operator chose another scheduling policy.

    A benchmark passes the `thread`, and a `turn_ns` of 0 for the default time slice.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    # A reset would also take a niceness below 0, which the operator gave to the whole service, from child processes.
    flags = _RESET_ON_FORK if nice >= 0 else 0
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, flags, nice, 0, turn_ns, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, thread, attributes, 0) == 0)


def request_time_slice_for_every_thread() -> None:
    """Request a time slice for every existing thread: those of torch compute while the main thread waits."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended
            request_time_slice(thread=int(thread))
