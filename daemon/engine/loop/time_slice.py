"""Asks the kernel for short turns of the processor: whoever asks for short ones gets it sooner when it wakes.

An engine sleeps between requests. Where other programs keep every processor busy it would wait for the end of a turn of
theirs, some milliseconds, each time that it wakes. It has no larger share by this. Linux 6.12 and later; before, nothing changes.

Processes that the policy starts have turns as everybody has them. The kernel sees to that (reset on fork), and to the same
for new threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct

#: The least that the kernel takes.
TIME_SLICE_NS = 100_000
#: SCHED_FLAG_RESET_ON_FORK of sched_setattr(2).
_RESET_ON_FORK = 1
#: glibc has no function for it before 2.41.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
#: struct sched_attr: size, policy, flags, nice, priority, runtime (of SCHED_OTHER: the turn), deadline, period.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


def request_time_slice(turn_ns: int = TIME_SLICE_NS, thread: int = 0) -> bool:
    """For this thread; False where that cannot be, or the operator chose another policy.

    A benchmark says which `thread`, and 0 for turns as everybody has them.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    # A reset would also take a niceness below 0 from what is started, which the operator gave to all of it.
    flags = _RESET_ON_FORK if nice >= 0 else 0
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, flags, nice, 0, turn_ns, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, thread, attributes, 0) == 0)


def request_time_slice_for_every_thread() -> None:
    """For the threads that this process has by now: those that compute a request beside the one that waits for it."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended
            request_time_slice(thread=int(thread))
