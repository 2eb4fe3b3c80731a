"""A process in the background: it yields the processors to the others, and the kernel ends it first when memory runs out.

Both can be taken back later, when the process has become important.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from .capabilities import SYS_NICE, has_capability

#: A tenth of a normal process's share: at 19 it would have a seventieth, and hardly end on a busy machine.
_NICE = 10
_FIRST_TO_END = 1000
_WORST_NICE = 20
#: A little more than the interval at which the kernel takes a change from users without privileges.
RETRY_S = 0.12


def move_to_background(pid: int) -> bool:
    """Lower the priority of a process that was just started by this one; False: call it again after RETRY_S.

    Its niceness is left alone where it could not be lowered again: RLIMIT_NICE is 0 by default.
    """
    own = os.getpriority(os.PRIO_PROCESS, 0)
    if _may_set(own) and own < _NICE:
        _set_niceness(pid, _NICE)
    # Where the kernel schedules by sessions, niceness counts within a session only, and an engine has its own.
    is_done = _set_session_niceness(pid, _NICE)
    _write(pid, "oom_score_adj", _FIRST_TO_END)
    return is_done


def move_to_foreground(pid: int) -> bool:
    """Give a process the priority of this one again; False: call it again after RETRY_S."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    if _may_set(own):
        _set_niceness(pid, own)
    is_done = _set_session_niceness(pid, 0)
    with contextlib.suppress(OSError, ValueError):
        _write(pid, "oom_score_adj", int(Path("/proc/self/oom_score_adj").read_text()))
    return is_done


def _may_set(niceness: int) -> bool:
    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    return limit == resource.RLIM_INFINITY or limit >= _WORST_NICE - niceness or has_capability(SYS_NICE)


def _set_niceness(pid: int, niceness: int) -> None:
    """Set that of every thread; one that is started meanwhile inherits it from one that has it, or is found the next time."""
    done: set[str] = set()
    with contextlib.suppress(OSError):  # the process has ended
        while new := set(os.listdir(f"/proc/{pid}/task")) - done:
            for thread in new:
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, int(thread), niceness)
            done |= new


def _set_session_niceness(pid: int, niceness: int) -> bool:
    """Return False if the kernel asks to try again: it takes one change in 0.1 s from users without privileges, all together."""
    try:
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
    except BlockingIOError:
        return False
    except OSError:  # it has ended, or this kernel has no such file
        pass
    return True


def _write(pid: int, file: str, value: int) -> None:
    with contextlib.suppress(OSError):  # it has ended, or this kernel has no such file
        Path(f"/proc/{pid}/{file}").write_text(str(value))
