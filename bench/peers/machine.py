"""Context of a figure: the machine, the versions, and the load of other programs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import time
from pathlib import Path
from typing import Any

PACKAGES = (
    "flask",
    "grpcio",
    "iceoryx2",
    "msgpack",
    "numpy",
    "protobuf",
    "pyzmq",
    "requests",
    "shmserve",
    "tensordict",
    "torch",
    "torchrl",
    "tritonclient",
    "websockets",
    "werkzeug",
)


def facts() -> dict[str, Any]:
    """Return machine, kernel, Python and packages, for a report."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "governor": governor.read_text().strip() if governor.exists() else "not visible",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: version for name in PACKAGES if (version := installed(name)) is not None},
        "pinning": "peers: none; floors: one processor each",
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.processor() or "unknown"


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Bystanders:
    """CPU share of other programs and of the hypervisor since this object was made."""

    def __init__(self) -> None:
        self._start = self._now()

    def shares(self) -> dict[str, float]:
        """Return the share of all processors; 0.0 is an idle machine. Counts only children that have ended, so call it last."""
        wall, busy, steal, own = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return {"other_cpu_share": max(0.0, busy - own) / wall, "steal_share": steal / wall}

    @staticmethod
    def _now() -> tuple[float, float, float, float]:
        tick = os.sysconf("SC_CLK_TCK")
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _, _, irq, softirq, steal = (int(field) / tick for field in fields)
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        return time.monotonic() * (os.cpu_count() or 1), user + nice + system + irq + softirq, steal, own
