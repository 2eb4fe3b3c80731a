"""GPU memory that clients write arrays to: an area for each slot of a channel, and the limits on it.

An engine allocates it, and the supervisor keeps a descriptor, so that the memory outlives that engine. It is freed once the
lease has ended and the client and the engines have unmapped it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from shmserve.layout import aligned
from shmserve.metadata_leaf import DEVICE_ALIGNMENT

from ..config.config import Config

#: Of the GPU, as CUDA's virtual memory has them so far; an engine reports what was taken.
_PAGE = 2 << 20


class AreaUnavailable(Exception):
    """No such memory: `reason` is one of off, no_gpu, not_ready, numpy, too_large, too_many_bytes, no_memory, failed.

    The facts beside the message are for programs, in bytes.
    """

    def __init__(
        self, reason: str, message: str, *, needed_bytes: int | None = None, limit_bytes: int | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.facts = {"needed_bytes": needed_bytes, "limit_bytes": limit_bytes}


@dataclass(frozen=True)
class DeviceArea:
    """The memory of one channel: `area_bytes` for each of `slots` slots."""

    descriptor: int
    area_bytes: int
    slots: int
    #: In whole pages of the GPU.
    bytes: int
    #: UUID of the GPU, in hexadecimal.
    gpu: str

    def holds(self, area_bytes: int, slots: int) -> bool:
        """Whether it has that many slots with room for that many bytes each."""
        return area_bytes <= self.area_bytes and slots <= self.slots

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)


class Holder(Protocol):
    """The part of a lease that counts against the limits."""

    @property
    def channel(self) -> int: ...
    @property
    def device_bytes(self) -> int: ...


def rounded(area_bytes: int) -> int:
    """Return the bytes of one slot's area, which begins where a leaf may."""
    return aligned(area_bytes, DEVICE_ALIGNMENT)


def check_room(config: Config, holders: Iterable[Holder], channel: int, area_bytes: int, slots: int) -> int:
    """Return the bytes of an area of this channel; raises AreaUnavailable if it or all areas exceed their limit."""
    wanted = aligned(area_bytes * slots, _PAGE)
    if wanted > config.max_device_bytes_per_client:
        raise AreaUnavailable(
            "too_large",
            f"{slots} slots of {area_bytes} bytes of GPU memory make {wanted}; max_device_bytes_per_client is "
            f"{config.max_device_bytes_per_client}: make the client with fewer slots, or raise it",
            needed_bytes=wanted,
            limit_bytes=config.max_device_bytes_per_client,
        )
    taken = sum(holder.device_bytes for holder in holders if holder.channel != channel)
    if taken + wanted > config.max_device_bytes:
        raise AreaUnavailable(
            "too_many_bytes",
            f"other clients have {taken} bytes of GPU memory, this one needs {wanted}; max_device_bytes is "
            f"{config.max_device_bytes}",
            needed_bytes=wanted,
            limit_bytes=max(0, config.max_device_bytes - taken),
        )
    return wanted
