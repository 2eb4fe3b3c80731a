"""Measurement of the size from which direct copies from the client's memory are faster than staging.

Staging costs a copy on the host, direct copies cost one device copy for each row instead of one for the batch. Which
is faster depends on the host's memory, the bus and the driver, so an engine measures both when it starts, within
milliseconds.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from .errors import is_out_of_memory
from .interface import Device, PinFailed

#: Measured sizes. Registration takes about a millisecond for each MiB when a client attaches, and page-locked memory
#: cannot be swapped: for smaller sizes the gain is too small.
SIZES = tuple((1 << 20) << power for power in range(5))
_ROUNDS = 9
#: Direct copies must be faster by a tenth, or the simpler staging is used.
_GAIN = 0.9


def measured_threshold(device: Device) -> int | None:
    """Measure the size from which direct copies are faster at every larger size; None if they never are, or do not work."""
    largest = SIZES[-1]
    try:
        pinned = device.pinned(largest)
        memory = device.memory(largest)
        # Shared like a segment; unmapped when its last tensor is freed.
        client = torch.from_numpy(np.frombuffer(mmap.mmap(-1, largest), np.uint8))
        client.fill_(1)
        device.register(client.data_ptr(), largest)
        try:
            staged, direct = _durations(device, pinned, memory, client)
        finally:
            device.synchronize()
            device.unregister(client.data_ptr())
    except PinFailed:
        return None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    return least_size(staged, direct)


def least_size(staged_ns: Mapping[int, int], direct_ns: Mapping[int, int]) -> int | None:
    """Return the smallest size from which a direct copy takes at most 0.9 of the staged copy's time.

    >>> least_size({1: 10, 2: 20, 4: 40}, {1: 11, 2: 15, 4: 20})
    2
    >>> least_size({1: 10, 2: 20, 4: 40}, {1: 5, 2: 10, 4: 40}) is None
    True
    """
    found = None
    for size in sorted(staged_ns, reverse=True):
        if direct_ns[size] > staged_ns[size] * _GAIN:
            break
        found = size
    return found


def _durations(
    device: Device, pinned: torch.Tensor, memory: torch.Tensor, client: torch.Tensor
) -> tuple[dict[int, int], dict[int, int]]:
    """Measure for each size the shortest time (ns) until the bytes are on the device, staged and direct."""
    event = device.event()
    host, slot = pinned.numpy(), client.numpy()

    def staged(size: int) -> None:
        np.copyto(host[:size], slot[:size])
        device.copy_in(memory[:size], pinned[:size], ahead=False)

    def direct(size: int) -> None:
        device.copy_in(memory[:size], client[:size], ahead=False)

    def duration_ns(copy: Callable[[int], None], size: int) -> int:
        began_ns = time.perf_counter_ns()
        copy(size)
        device.record(event)
        event.synchronize()
        return time.perf_counter_ns() - began_ns

    def shortest(copy: Callable[[int], None]) -> dict[int, int]:
        return {size: min(duration_ns(copy, size) for _ in range(_ROUNDS)) for size in SIZES}

    return shortest(staged), shortest(direct)
