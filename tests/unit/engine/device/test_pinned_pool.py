"""Page-locked memory as torch's allocator has it: of which size, what is said of it, and that it is given back. On the late GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from shmserve.daemon.engine.device.context import DeviceContext
from shmserve.daemon.engine.device.pinned_pool import PinnedPool
from shmserve.daemon.engine.device.readback import Readback
from tests.support.late_device import LateDevice


@pytest.fixture
def device() -> Iterator[LateDevice]:
    with LateDevice() as device:
        yield device


@pytest.mark.parametrize(("size", "pinned"), [(1, 1), (4096, 4096), (4097, 8192), (70_000_000, 1 << 27)])
def test_all_of_a_block_can_be_used_and_is_counted(device: LateDevice, size: int, pinned: int) -> None:
    pool = PinnedPool(device)
    assert pool.take(size).numel() == pinned
    assert pool.pinned_bytes == pinned == device.gpus.pinned_bytes


def test_growing_does_not_leave_the_sum_of_all_sizes_locked(device: LateDevice) -> None:
    context = DeviceContext(device, max_batch=1, register_bytes=None)
    for size in (3 << 10, 100 << 10, 300 << 10, 3 << 20):
        context.make_room(size)

    assert [arena.size for arena in context.arenas] == [4 << 20, 4 << 20]
    assert device.gpus.pinned_bytes == context.report()["staging_bytes"] == 2 * (4 << 20)


def test_growing_results_do_not_leave_the_sum_of_all_sizes_locked(device: LateDevice) -> None:
    pool = PinnedPool(device)
    results = Readback(device, pool)
    for size in (3 << 10, 100 << 10, 300 << 10, 3 << 20):
        results.begin()
        found = results.fetch({"y": torch.full((size,), 7, dtype=torch.uint8, device=device.torch_device)})
        device.synchronize()
        assert found["y"].tolist()[-1] == 7
    results.begin()

    assert device.gpus.pinned_bytes == pool.pinned_bytes == 4 << 20


def test_results_of_the_same_batch_keep_their_memory_until_they_are_read(device: LateDevice) -> None:
    results = Readback(device, PinnedPool(device))
    results.begin()
    small = results.fetch(torch.full((1000,), 3, dtype=torch.uint8, device=device.torch_device))
    results.fetch(torch.full((1 << 20,), 4, dtype=torch.uint8, device=device.torch_device))
    device.synchronize()
    assert small.unique().tolist() == [3]


def test_arenas_that_cannot_both_grow_lock_nothing(device: LateDevice) -> None:
    context = DeviceContext(device, max_batch=1, register_bytes=None)
    device.gpus.memory_limit = 4 << 10
    with pytest.raises(torch.OutOfMemoryError):
        context.make_room(5 << 10)
    device.gpus.memory_total = 6 << 10
    with pytest.raises(torch.OutOfMemoryError):
        context.make_room(4 << 10)
    assert device.gpus.pinned_bytes == context.report()["staging_bytes"] == 0


def test_where_no_more_can_be_had_than_asked_for_the_arenas_get_that(device: LateDevice) -> None:
    context = DeviceContext(device, max_batch=1, register_bytes=None)
    device.gpus.memory_limit = 3 << 10
    context.make_room(3 << 10)
    assert [arena.size for arena in context.arenas] == [3 << 10, 3 << 10]
    with pytest.raises(torch.OutOfMemoryError):
        context.make_room(4 << 10)
    assert [arena.size for arena in context.arenas] == [3 << 10, 3 << 10]


def test_memory_that_is_not_locked_is_given_back_as_well(device: LateDevice) -> None:
    pool = PinnedPool(device)
    device.gpus.runtime.limit = 0
    memory = pool.take(5000)
    assert (pool.pinned_bytes, pool.pageable_bytes) == (0, 8192)
    pool.forget(memory)
    assert (pool.pinned_bytes, pool.pageable_bytes) == (0, 0)
