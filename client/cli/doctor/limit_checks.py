"""Checks of the limits under which the service runs: of the process, and of its control groups."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .finding import Finding, Needs, ok, problem, warning
from .machine_checks import MIB

#: Descriptors of a client's channel with transport `sealed`, and those of a service without clients.
_DESCRIPTORS_A_CLIENT = 6
_OWN_DESCRIPTORS = 128
#: An interpreter with torch, a supervisor, and a spare engine.
_LEAST_MEMORY = 1024 * MIB
_LEAST_TASKS = 256
_FULL = 0.9


@dataclass(frozen=True)
class Limit:
    """Soft and hard limit; None: unlimited."""

    soft: int | None
    hard: int | None

    def __str__(self) -> str:
        return "unlimited" if self.soft is None else f"{self.soft:,}"


def _words(limit: Limit | None) -> str:
    return "not visible to this user" if limit is None else str(limit)


def read_limits(text: str) -> dict[str, Limit]:
    """Return the limits in the text of /proc/PID/limits by their names.

    >>> str(read_limits("Limit  Soft Limit  Hard Limit  Units\\nMax open files            1024      unlimited    files\\n")["Max open files"])
    '1,024'
    """
    found = {}
    for name, soft, hard in re.findall(r"^(Max [a-z -]+?) +(\d+|unlimited) +(\d+|unlimited)\b", text, re.MULTILINE):
        found[name] = Limit(*(None if value == "unlimited" else int(value) for value in (soft, hard)))
    return found


def check_locked_memory(limit: Limit | None, is_locked: bool | None, needs: Needs) -> Finding:
    """Judge RLIMIT_MEMLOCK; `is_locked` is what the engine reports, None if it was not asked to lock its memory."""
    if is_locked is False:
        return problem(
            "locked memory",
            f"lock_memory = true has no effect: RLIMIT_MEMLOCK is {_words(limit)}",
            "LimitMEMLOCK=infinity in the unit (the drop-in realtime.conf has it), or docker run --ulimit memlock=-1",
        )
    if is_locked:
        return ok("locked memory", "the engine's memory is locked")
    if needs.lock_memory:
        return ok(
            "locked memory", f"RLIMIT_MEMLOCK is {_words(limit)}; lock_memory = true, and no engine has begun to serve"
        )
    return ok("locked memory", f"RLIMIT_MEMLOCK is {_words(limit)}, which matters with lock_memory = true only")


def check_real_time(limit: Limit | None, priority: int | None, runtime_us: int | None, needs: Needs) -> Finding:
    """Judge the permission for real-time priority; `priority` is what the engine reports, `runtime_us` the kernel's share."""
    if priority == 0:
        return problem(
            "real time",
            f"engine_priority = {needs.engine_priority} has no effect: RLIMIT_RTPRIO is {_words(limit)}, or a sandbox refuses it",
            f"LimitRTPRIO={needs.engine_priority} and what else realtime.conf has (docs/how-to/systemd.md), or docker run "
            f"--ulimit rtprio={needs.engine_priority}",
        )
    if priority:
        if runtime_us == -1:
            return warning(
                "real time",
                f"the engine has priority {priority}, and the kernel leaves other programs no time (sched_rt_runtime_us = -1)",
                "sudo sysctl kernel.sched_rt_runtime_us=950000",
            )
        return ok("real time", f"the engine has priority {priority}")
    return ok("real time", f"RLIMIT_RTPRIO is {_words(limit)}, which matters with engine_priority only")


def check_open_files(limit: Limit | None, needs: Needs) -> Finding:
    """Judge the hard limit of open files: the supervisor raises its soft limit itself."""
    needed = _DESCRIPTORS_A_CLIENT * needs.max_clients + _OWN_DESCRIPTORS
    if limit is None or limit.hard is None or limit.hard >= needed:
        return ok("open files", f"{'unlimited' if limit is None or limit.hard is None else f'{limit.hard:,}'}")
    found = f"{limit.hard:,} at most, and {needs.max_clients} clients (max_clients) may need {needed:,}"
    remedy = "LimitNOFILE=8192 in the unit, docker run --ulimit nofile=8192, or ulimit -Hn as root"
    return (problem if limit.hard < _OWN_DESCRIPTORS else warning)("open files", found, remedy)


@dataclass(frozen=True)
class ControlGroup:
    """Files of one control group, as texts; empty where the group does not have one."""

    path: str
    memory_max: str = ""
    memory_current: str = ""
    memory_stat: str = ""
    cpu_max: str = ""
    cpu_stat: str = ""
    pids_max: str = ""


def _no_limit(groups: Sequence[ControlGroup]) -> str:
    return "none of a control group" if groups else "not visible: no control groups of version 2 here"


def check_memory_limit(groups: Sequence[ControlGroup]) -> Finding:
    """Judge the memory limits of the group and those above it."""
    limited = [(int(group.memory_max), group) for group in groups if group.memory_max.strip().isdigit()]
    if not limited:
        return ok("memory limit", _no_limit(groups))
    limit, group = min(limited, key=lambda each: each[0])
    current = int(group.memory_current) if group.memory_current.strip().isdigit() else 0
    # Pages of files count as used, and the kernel takes them back when they are needed.
    files = re.findall(r"^(?:in)?active_file (\d+)$", group.memory_stat, re.MULTILINE)
    current = max(0, current - sum(map(int, files)))
    found = f"{limit / MIB:,.0f} MiB by {group.path}, {current / MIB:,.0f} MiB in use"
    remedy = "raise MemoryMax= of the unit (systemctl edit), or docker update --memory; docs/how-to/systemd.md has what it must hold"
    if limit < _LEAST_MEMORY:
        return warning("memory limit", f"{found}: an engine, a spare engine and channels hardly fit", remedy)
    if current > _FULL * limit:
        return warning("memory limit", f"{found}: the next client or model may not fit", remedy)
    return ok("memory limit", found)


def check_processor_limit(groups: Sequence[ControlGroup]) -> Finding:
    """Judge the processor time that the groups may take."""
    shares = []
    for group in groups:
        quota, _, period = group.cpu_max.strip().partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            shares.append((int(quota) / int(period), group))
    if not shares:
        return ok("processor limit", _no_limit(groups))
    share, group = min(shares, key=lambda each: each[0])
    stopped = re.search(r"^nr_throttled (\d+)$", group.cpu_stat, re.MULTILINE)
    times = f", stopped {int(stopped[1]):,} times" if stopped else ""
    return warning(
        "processor limit",
        f"{share:.2g} processors by {group.path}{times}: once they are used up, the engine stands still until the next period",
        "CPUQuota= of the unit empty, docker update --cpus 0; to keep other programs away use CPUAffinity= or CPUWeight=",
    )


def check_task_limit(limit: Limit | None, groups: Sequence[ControlGroup]) -> Finding:
    """Judge the number of processes and threads."""
    limits = [int(group.pids_max) for group in groups if group.pids_max.strip().isdigit()]
    if limit is not None and limit.soft is not None:
        limits.append(limit.soft)
    least = min(limits, default=None)
    if least is None or least >= _LEAST_TASKS:
        return ok("tasks", "unlimited" if least is None else f"{least:,}")
    return warning(
        "tasks",
        f"{least} processes and threads at most, and each engine takes one thread for each processor and some more",
        "TasksMax=512 in the unit, docker update --pids-limit 512",
    )
