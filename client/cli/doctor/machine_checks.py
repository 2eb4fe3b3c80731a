"""Checks of the machine: kernel, processors, clock and shared memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from .finding import Finding, Needs, ok, problem, warning

MIB = 1 << 20
#: Of Docker and Podman, where nobody says otherwise.
_CONTAINER_SHM = 64 * MIB
#: A channel for one camera: four slots of a VGA image in each direction, rounded up.
_LEAST_SHM = 16 * MIB
#: Read without a system call (vDSO).
_FAST_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")
#: The kernel that has everything shmserve uses, and what older ones lack.
_OPTIONAL_CALLS = (
    ((5, 3), "pidfds: the death of a client is noticed by the end of its connection"),
    ((6, 5), "SO_PEERPIDFD: a client that ends while it connects may be mistaken for another process"),
    ((6, 12), "time slices of a thread: an engine beside busy programs waits longer for its processor"),
)


def check_kernel(release: str, refused: Mapping[str, str]) -> Finding:
    """Judge the kernel by its release and by the calls that it, or a sandbox, refused, with the reasons."""
    if refused:
        listed = ", ".join(f"{call} ({reason})" for call, reason in refused.items())
        return problem(
            "kernel",
            f"Linux {release} refuses {listed}",
            "allow these calls in the container's or the unit's filter of system calls, or boot a kernel of 5.3 or newer",
        )
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    lacking = [words for since, words in _OPTIONAL_CALLS if version < since]
    return ok("kernel", f"Linux {release}" + (f"; without {'; '.join(lacking)}" if lacking else ""))


def check_processors(usable: Collection[int], online: int, isolated: Collection[int]) -> Finding:
    """Judge the processors that the service may run on, of those that are online."""
    count = f"{len(usable)} of {online} processors"
    if len(usable) < 2:
        return warning(
            "processors",
            f"the service may run on {count}: engine and robot wait for each other",
            "give it two or more: CPUAffinity= of the unit, taskset, docker run --cpuset-cpus",
        )
    idle = sorted(set(isolated) - set(usable))
    if idle:
        return warning(
            "processors",
            f"the service may run on {count}, and not on the isolated {_listed(idle)}",
            f"if they are meant for it, name them: CPUAffinity={_listed(idle)} in realtime.conf (docs/how-to/systemd.md)",
        )
    return ok("processors", f"{count}" + (f", isolated: {_listed(sorted(isolated))}" if isolated else ""))


def check_governor(governors: Sequence[str]) -> Finding:
    """Judge the frequency governors, one of each processor or policy."""
    if not governors:
        return ok("governor", "none: this machine, or its hypervisor, sets the clock itself")
    slow = [name for name in governors if name != "performance"]
    if not slow:
        return ok("governor", "performance")
    names = ", ".join(f"{name} ({count})" for name, count in Counter(slow).items())
    return warning(
        "governor",
        f"{names}: the clock is lowered between two requests, and every time of a request grows",
        "sudo cpupower frequency-set -g performance",
    )


def check_clock(source: str | None) -> Finding:
    """Judge the kernel's clock source."""
    if source is None:
        return ok("clock", "its source is not visible here")
    if source in _FAST_CLOCKS:
        return ok("clock", source)
    return warning(
        "clock",
        f"{source}: each reading of the time is a system call, several for each request",
        "find out why tsc was given up: sudo dmesg | grep -i -e tsc -e clocksource; on trusted hardware boot with tsc=reliable",
    )


def check_shared_memory(kind: str | None, size: int, free: int, used_here: int, needs: Needs) -> Finding:
    """Judge /dev/shm: its file system (None: nothing is mounted), its bytes, and those that shmserve's objects take."""
    named = needs.transport == "named"
    amounts = f"{_mib(free)} free of {_mib(size)}, {_mib(used_here)} in objects of shmserve"
    remedy = 'sudo mount -o remount,size=1G /dev/shm; in a container docker run --shm-size=1g; or transport = "sealed"'
    if kind != "tmpfs":
        what = "nothing is mounted at /dev/shm" if kind is None else f"/dev/shm is {kind}, not tmpfs"
        if named:
            return problem("shared memory", what, "sudo mount -t tmpfs -o mode=1777 tmpfs /dev/shm")
        return ok("shared memory", f"{what}; transport sealed does not use it")
    if not named:
        return ok("shared memory", f"{amounts}; transport sealed does not use it")
    if free < _LEAST_SHM:
        return problem("shared memory", f"{amounts}: too little for a robot with a camera", remedy)
    if size <= _CONTAINER_SHM:
        return warning("shared memory", f"{amounts}: the default of a container, soon full with cameras", remedy)
    return ok("shared memory", amounts)


def processors_of(text: str) -> frozenset[int]:
    """Return the numbers in a list of the kernel.

    >>> sorted(processors_of("0-2,5"))
    [0, 1, 2, 5]
    """
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def file_system_at(mounts: str, place: str) -> str | None:
    """Return the kind of the file system that is mounted last at `place`, from the text of /proc/mounts.

    >>> file_system_at("tmpfs /dev tmpfs rw 0 0\\nshm /dev/shm tmpfs rw 0 0\\n", "/dev/shm")
    'tmpfs'
    """
    kinds = [words[2] for line in mounts.splitlines() if len(words := line.split()) > 2 and words[1] == place]
    return kinds[-1] if kinds else None


def _listed(numbers: Collection[int]) -> str:
    return ",".join(map(str, numbers))


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB"
