"""Whether a device has room for a second model while the first one serves; asked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Factor for memory beside the bytes of a package: activations, workspaces, rounding of the allocator.
_MARGIN = 1.2
_MIB = 1 << 20


class DeviceMemoryShort(Exception):
    """The model does not fit beside the one that serves."""


@dataclass(frozen=True)
class Beside:
    """The model that serves meanwhile on the same device."""

    #: The most that its tensors have taken of the device.
    model_bytes: int
    package_bytes: int


def needed_bytes(package_bytes: int, declared: int | None, beside: Beside) -> tuple[int, str]:
    """How much the new model needs, and where that comes from.

    What its package declares; else what the model that serves takes, scaled by the sizes of the two packages.

    >>> needed_bytes(1000, 5000, Beside(3000, 1000))
    (5000, 'its device_bytes')
    >>> needed_bytes(2000, None, Beside(3000, 1000))[0]
    6000
    >>> needed_bytes(2000, None, Beside(0, 1000))[0]      # nothing is known of the one that serves
    2400
    """
    if declared is not None:
        return declared, "its device_bytes"
    least = int(package_bytes * _MARGIN)
    scaled = beside.model_bytes * package_bytes // max(1, beside.package_bytes)
    if scaled > least:
        return scaled, (
            f"the {beside.model_bytes // _MIB} MiB of the model that serves, times {package_bytes / _MIB:.1f} MiB of "
            f"package over {beside.package_bytes / _MIB:.1f}; device_bytes in model.toml says better"
        )
    return least, f"{package_bytes / _MIB:.1f} MiB of package and a fifth; device_bytes in model.toml says better"


def check_room(free_bytes: int, total_bytes: int, needed: int, why: str, device: str) -> None:
    """Raises DeviceMemoryShort with the numbers."""
    if needed > free_bytes:
        raise DeviceMemoryShort(
            f"{device} has {free_bytes // _MIB} MiB free of {total_bytes // _MIB} while the present model serves, and the "
            f"new one needs about {needed // _MIB} ({why}); update with --in-place: the present model is stopped first"
        )


def package_bytes(path: Path) -> int:
    """The bytes of a package's files."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def available_bytes(meminfo: str) -> int | None:
    """What /proc/meminfo says can be had without swapping (bytes).

    Where the GPU uses the host's memory (Jetson), CUDA counts as free only what nobody uses at all; the kernel's
    caches, most of a host's memory after a while, are given up when somebody asks.

    >>> available_bytes("MemTotal: 16 kB\\nMemAvailable:    7 kB\\n")
    7168
    """
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
