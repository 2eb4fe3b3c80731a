"""Descriptors of the daemon's processes: kept from their children, and their limit.

The soft limit is raised for the daemon's own processes, and not for the programs that a policy starts. A channel of
transport `sealed` takes six descriptors. The usual limit of 1024 is there for programs with select(2), which a policy may
start: so a supervisor raises it for itself at once, and an engine when it comes near to it.
"""

from __future__ import annotations

import contextlib
import os
import resource

#: As many as a full service needs several times over; some systems allow a thousand million.
_MOST = 16384
#: An engine raises its limit when no more are left; one message of the supervisor brings 64 at most.
_NEAR = 256
_FIRST = 3  # after standard input, output and error
#: As the operator gave it: this is imported before anything raises it.
_given = resource.getrlimit(resource.RLIMIT_NOFILE)


def keep_from_children() -> None:
    """Make every open descriptor but the standard three close-on-exec; Python does so with what it opens itself."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= _FIRST:
            try:
                os.set_inheritable(int(name), False)
            except OSError:  # that of the listing itself
                continue


def raise_limit() -> None:
    """For a supervisor, which starts no program of a policy."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _MOST)), hard))


def restore_limit(pid: int) -> None:
    """Let the engine that was just started have the limit that the operator gave."""
    with contextlib.suppress(OSError):  # it has ended, or a sandbox does not allow it: then it has the supervisor's
        resource.prlimit(pid, resource.RLIMIT_NOFILE, _given)


def keep_room() -> None:
    """For an engine, before it takes another channel: raise the limit if it is near."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        lowest_free = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.close(lowest_free)
    except OSError:  # there is none
        lowest_free = soft
    if lowest_free + _NEAR > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * (soft + _NEAR), _MOST)), hard))
