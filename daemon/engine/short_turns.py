"""Asks the kernel for short turns of the processor: whoever asks for short ones gets it sooner when it wakes.

An engine sleeps between requests. Where other programs keep every processor busy it would wait for the end of a turn of
theirs, some milliseconds, each time that it wakes. It has no larger share by this. Linux 6.12 and later; before, nothing changes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

#: The least that the kernel takes.
TURN_NS = 100_000
#: glibc has no function for it before 2.41.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
#: struct sched_attr: size, policy, flags, nice, priority, runtime (of SCHED_OTHER: the turn), deadline, period.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")


def ask_for_short_turns(turn_ns: int = TURN_NS, thread: int = 0) -> bool:
    """For this thread and those that it starts; False where that cannot be, or the operator chose another policy.

    A benchmark says which `thread`, and 0 for turns as everybody has them.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or os.sched_getscheduler(thread) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, thread)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, turn_ns, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, thread, attributes, 0) == 0)
