"""The device of `cuda.py` on a real GPU and on the late one, so that both behave alike."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from shmserve.daemon.engine.device import tuning
from shmserve.daemon.engine.device.cuda import CudaDevice
from shmserve.daemon.engine.device.interface import PinFailed, sharing
from shmserve.daemon.engine.device.tuning import SIZES, measured_threshold
from tests.support.late_device import LateDevice

_SIZE = 1 << 20


@pytest.fixture(scope="module", params=["late", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[CudaDevice]:
    with LateDevice() if request.param == "late" else contextlib.nullcontext() as late:
        device = late or CudaDevice(torch.device("cuda"))
        yield device
        device.synchronize()
        assert device.poisoned() is None


@pytest.mark.parametrize("ahead", [False, True])
def test_bytes_arrive_before_the_model_reads_them(device: CudaDevice, ahead: bool) -> None:
    host, memory = device.pinned(_SIZE), device.memory(_SIZE)
    assert host.is_pinned()
    back, arrived, done = device.pinned(_SIZE), device.event(), device.event()
    for turn in range(20):
        device.hold(done, ahead=ahead)
        if not arrived.query():
            arrived.synchronize()
        host.fill_(turn)
        device.copy_in(memory, host, ahead=ahead)
        device.record(arrived, ahead=ahead)
        device.hold(arrived)
        device.copy_out(back, memory + 1)
        device.record(done)
        done.synchronize()
        assert done.query()
        assert int(back[0]) == int(back[-1]) == turn + 1


def test_an_event_that_was_never_recorded_has_passed(device: CudaDevice) -> None:
    event = device.event()
    assert event.query()
    event.synchronize()
    device.hold(event, ahead=True)


def test_copies_are_asynchronous(device: CudaDevice) -> None:
    size = 1 << 20 if isinstance(device, LateDevice) else 256 << 20
    host, memory, event = device.pinned(size), device.memory(size), device.event()
    for ahead in (False, True):
        device.synchronize()
        device.copy_in(memory, host, ahead=ahead)
        device.record(event, ahead=ahead)
        assert not event.query(), "it was copied before the call returned"
        event.synchronize()


def test_shared_memory_can_be_registered_copied_from_and_given_up(device: CudaDevice) -> None:
    mapped = mmap.mmap(-1, _SIZE)
    client = torch.from_numpy(np.frombuffer(mapped, np.uint8))
    try:
        device.register(client.data_ptr(), _SIZE)
    except PinFailed as error:
        pytest.skip(f"this machine registers no memory: {error}")
    with pytest.raises(PinFailed):
        device.register(client.data_ptr(), _SIZE)
    torch.ones(3, device=device.torch_device)  # the failed call is not blamed on this one
    memory, event = device.memory(_SIZE), device.event()
    client.fill_(7)
    device.copy_in(memory, client, ahead=True)
    device.record(event, ahead=True)
    event.synchronize()
    assert torch.all(memory == 7).item()
    device.unregister(client.data_ptr())
    device.register(client.data_ptr(), _SIZE)  # it was given up
    device.unregister(client.data_ptr())


def test_registered_memory_is_read_where_it_is(device: CudaDevice) -> None:
    client = torch.from_numpy(np.frombuffer(mmap.mmap(-1, _SIZE), np.uint8))
    try:
        device.register(client.data_ptr(), _SIZE)
        memory = device.over(client.data_ptr() + 64, 128)
    except PinFailed as error:
        pytest.skip(f"this machine reads no memory of the host: {error}")
    for turn in range(3):
        client.fill_(turn)
        assert torch.all(memory == turn).item()
    assert memory.device == device.torch_device
    del memory
    device.synchronize()
    device.unregister(client.data_ptr())


def test_the_threshold_is_measured(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(device, LateDevice):
        monkeypatch.setattr(tuning, "_ROUNDS", 1)
    assert measured_threshold(device) in (None, *SIZES)


def test_processes_that_share_device_memory_are_counted(device: CudaDevice) -> None:
    memory = device.memory(1024)
    before = sharing(memory)
    assert before is not None, "this torch cannot tell: every batch will take new device memory"
    for keep in (lambda: memory[8:16].view(torch.float32), memory.detach, memory.untyped_storage):
        kept = keep()
        assert sharing(memory) != before
        del kept
        assert sharing(memory) == before


def test_a_recorded_call_reads_and_writes_the_same_memory_again(device: CudaDevice) -> None:
    x = torch.zeros(4, device=device.torch_device)
    device.prepare_capture(lambda: x * 2)
    captured, other = device.capture(lambda: x * 2), device.capture(lambda: x + 1)
    for value in (1.0, 5.0):
        x.fill_(value)
        captured.replay()
        assert captured.output.tolist() == [value * 2] * 4
        other.replay()
        assert other.output.tolist() == [value + 1] * 4


def test_memory_is_free_and_counted(device: CudaDevice) -> None:
    free, total = device.free_memory()
    assert 0 < free <= total
    held = device.memory(64 << 20)
    assert device.used_memory() >= device.reserved_memory() >= held.numel()
    assert device.facts()["name"]
    assert device.poisoned() is None


def test_too_much_memory_is_refused_and_poisons_nothing(device: CudaDevice) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        device.memory(1 << 46)
    with pytest.raises(PinFailed):
        device.pinned(1 << 46)
    assert device.poisoned() is None
    torch.ones(3, device=device.torch_device)
