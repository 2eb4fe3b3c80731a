"""Bytes to the device (GB/s): pageable, page-locked and bare, staged as requests are, and from registered memory."""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shmserve.daemon.engine.device.interface import Device, PinFailed

#: Bytes of an observation: a small image to several Full HD ones.
SIZES = (300_000, 921_600, 2_764_800, 6_220_800, 12_441_600)


def measure(device: Device, rounds: int) -> list[dict[str, Any]]:
    """Measure a row for each size: the median of several copies of each way, in alternating turns."""
    largest = max(SIZES)
    pageable, pinned, memory = torch.ones(largest, dtype=torch.uint8), device.pinned(largest), device.memory(largest)
    slot = np.frombuffer(mmap.mmap(-1, largest), np.uint8)
    client, host, event = torch.from_numpy(slot), pinned.numpy(), device.event()
    client.fill_(1)
    try:
        device.register(client.data_ptr(), largest)
        registered = True
    except PinFailed as error:
        print(f"registered: not here ({error})")
        registered = False

    def copied(source: torch.Tensor) -> Callable[[int], None]:
        return lambda size: device.copy_in(memory[:size], source[:size], ahead=True)

    def staged(size: int) -> None:
        np.copyto(host[:size], slot[:size])
        device.copy_in(memory[:size], pinned[:size], ahead=True)

    ways: dict[str, Callable[[int], None]] = {"pageable": copied(pageable), "bare": copied(pinned), "staged": staged}
    if registered:
        ways["registered"] = copied(client)
    rows = []
    for size in SIZES:
        taken: dict[str, list[int]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, copy in ways.items():
                began = time.perf_counter_ns()
                copy(size)
                device.record(event, ahead=True)
                event.synchronize()
                taken[way].append(time.perf_counter_ns() - began)
        us = {way: statistics.median(found) / 1e3 for way, found in taken.items()}
        rows.append({"bytes": size, **{f"{way}_us": round(found, 1) for way, found in us.items()}})
        rows[-1] |= {f"{way}_gb_s": round(size / found / 1e3, 2) for way, found in us.items()}
        rows[-1] |= {
            f"{way}_to_bare": round(us["bare"] / us[way], 2) for way in ways if way in ("staged", "registered")
        }
    if registered:
        device.unregister(client.data_ptr())
    return rows
