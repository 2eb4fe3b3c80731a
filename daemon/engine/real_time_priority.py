"""Real-time priority of the engine (SCHED_FIFO): it runs before every program of normal priority.

The engine sets it itself, once its model is warm. A policy for the whole unit would also apply to the supervisor, which
hashes and unpacks packages while robots are served, and to an engine that loads the next model. With
CPUSchedulingResetOnFork= it would apply to the supervisor alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import threading

from ..host.capabilities import SYS_NICE, has_capability

#: Names of the service's own Python threads begin so. The serving thread waits for them, and for the interpreter that they hold.
SERVICE_THREADS = "shmserve-"

log = logging.getLogger(__name__)


def request_priority(priority: int) -> bool:
    """Give this thread and those of libraries real-time priority; return False, after a warning with the remedy, if that fails.

    Called in the main thread, which serves. The service's own threads get it as well. An operation of torch or numpy ends with the last of its threads, so they
    need the same priority. The policy's own Python threads keep theirs, because one that computes for long would delay the requests.
    Threads and processes that are started later have normal priority (reset on fork).
    """
    try:
        _set(0, priority)
    except OSError as error:  # EPERM; EINVAL from a sandbox's filter
        log.warning(
            "engine_priority = %d has no effect, and the engine serves with normal priority: %s",
            priority,
            refusal(priority, resource.getrlimit(resource.RLIMIT_RTPRIO)[0], has_capability(SYS_NICE), error),
        )
        return False
    of_python = {thread.native_id for thread in threading.enumerate() if not thread.name.startswith(SERVICE_THREADS)}
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread not in of_python:
            with contextlib.suppress(OSError):  # it has ended
                _set(thread, priority)
    return True


def _set(thread: int, priority: int) -> None:
    os.sched_setscheduler(thread, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))


def refusal(priority: int, limit: int, is_exempt: bool, error: OSError) -> str:
    """Return why the kernel refused SCHED_FIFO under this RLIMIT_RTPRIO, and what to do."""
    if limit != resource.RLIM_INFINITY and limit < priority and not is_exempt:
        return (
            f"RLIMIT_RTPRIO is {limit}; set LimitRTPRIO={priority} in the unit (the drop-in realtime.conf sets it), or "
            f"docker run --ulimit rtprio={priority}"
        )
    return (
        f"SCHED_FIFO was refused ({error.strerror}) although the limits allow it; in a unit set RestrictRealtime=no and "
        "SystemCallFilter=sched_setscheduler (the drop-in realtime.conf has both); in a container permit sched_setscheduler "
        "and, on a kernel with CONFIG_RT_GROUP_SCHED, give its control group real-time bandwidth"
    )
