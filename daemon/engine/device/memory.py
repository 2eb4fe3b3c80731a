"""Memory check for a second model on the device of the one that serves, before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Factor for memory beside the bytes of a package: activations, workspaces, rounding of the allocator.
_MARGIN = 1.2
_MIB = 1 << 20


class DeviceMemoryShort(Exception):
    """The model does not fit beside the one that serves."""


@dataclass(frozen=True)
class ServingMemory:
    """The model that serves on the same device."""

    #: Peak of the device memory of its tensors, and what its libraries took beside them.
    model_bytes: int
    package_bytes: int


def needed_bytes(package_bytes: int, declared: int | None, serving: ServingMemory) -> tuple[int, str]:
    """Return the new model's need of memory, and the source of that number.

    It is the package's declaration, else the serving model's memory scaled by the sizes of the two packages.

    >>> needed_bytes(1000, 5000, ServingMemory(3000, 1000))
    (5000, 'its device_bytes')
    >>> needed_bytes(2000, None, ServingMemory(3000, 1000))[0]
    6000
    >>> needed_bytes(2000, None, ServingMemory(0, 1000))[0]      # the serving model's memory is unknown
    2400
    """
    if declared is not None:
        return declared, "its device_bytes"
    least = int(package_bytes * _MARGIN)
    scaled = serving.model_bytes * package_bytes // max(1, serving.package_bytes)
    if scaled > least:
        return scaled, (
            f"the {serving.model_bytes // _MIB} MiB of the model that serves, times {package_bytes / _MIB:.1f} MiB of "
            f"package over {serving.package_bytes / _MIB:.1f}; set device_bytes in model.toml for an exact number"
        )
    return (
        least,
        f"{package_bytes / _MIB:.1f} MiB of package and a fifth; set device_bytes in model.toml for an exact number",
    )


def check_room(free_bytes: int, total_bytes: int, needed: int, why: str, device: str) -> None:
    """Raise DeviceMemoryShort, with the numbers, if the device has too little free memory."""
    if needed > free_bytes:
        raise DeviceMemoryShort(
            f"{device} has {free_bytes // _MIB} MiB free of {total_bytes // _MIB} while the current model serves, and the "
            f"new one needs about {needed // _MIB} ({why}); update with --in-place: the current model is stopped first"
        )


def package_bytes(path: Path) -> int:
    """Return the total size of a package's files."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
