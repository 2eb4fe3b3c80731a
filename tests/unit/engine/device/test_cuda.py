"""What `device/cuda.py` decides by itself, on the late GPU; tests/gpu/test_gpu.py has what a real GPU must do alike."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator

import pytest
import torch

from shmserve.daemon.engine.device.cuda import CudaDevice
from shmserve.daemon.engine.device.interface import PinFailed
from tests.gpu.late_tensor import accelerator_error
from tests.support.late_device import LateDevice


@pytest.fixture
def device() -> Iterator[LateDevice]:
    with LateDevice(devices=2) as device:
        yield device


def test_a_policy_that_leaves_another_stream_behind_is_waited_for_and_told_once(
    device: LateDevice, caplog: pytest.LogCaptureFixture
) -> None:
    compute = torch.cuda.current_stream()
    x = torch.zeros(1000, device=device.torch_device)
    device.rejoin()
    for turn in range(2):
        stray = torch.cuda.Stream()
        stray.wait_stream(compute)
        torch.cuda.set_stream(stray)
        x += turn + 1
        torch.cuda.set_device(1)

        device.rejoin()

        assert torch.cuda.current_stream() is compute and torch.cuda.current_device() == 0
        assert float(x[-1]) == (1, 3)[turn]  # on the compute stream, after the policy's work on the other
    assert caplog.text.count("torch.cuda.set_stream()") == 1


LOST = "unspecified launch failure"


def test_an_error_that_stays_is_a_lost_device(device: LateDevice) -> None:
    assert device.poisoned() is None
    device.gpus.poison = LOST
    assert device.poisoned() == f"CUDA error: {LOST}"


def test_an_error_that_nobody_asked_for_is_not_a_lost_device(device: LateDevice) -> None:
    device.gpus.runtime.cudaHostUnregister(4096)
    assert device.poisoned() is None
    assert device.gpus.runtime.last_error == 0


def test_a_device_without_memory_is_not_lost(device: LateDevice) -> None:
    device.gpus.memory_limit = 0
    assert device.poisoned() is None


def test_a_result_of_another_gpu_is_not_this_ones(device: LateDevice) -> None:
    there = torch.zeros(3, device="cuda:1")
    assert not device.holds(there)
    assert device.holds(torch.zeros(3, device="cuda"))
    assert device.bring(torch.zeros(3)) is None
    brought = device.bring(there + 1)
    assert brought is not None and device.holds(brought) and brought.tolist() == [1, 1, 1]


def test_a_device_works_on_its_own_gpu_whatever_is_current(device: LateDevice) -> None:
    with torch.cuda.device(1):
        memory = device.memory(8)
        assert device.facts()["name"] == "late CUDA"
        device.synchronize()
    assert memory.device == torch.device("cuda", 0)


def test_memory_that_is_already_registered_is_refused_and_nothing_else_is_blamed(device: LateDevice) -> None:
    memory = torch.zeros(64, dtype=torch.uint8)
    device.register(memory.data_ptr(), 64)
    with pytest.raises(PinFailed, match="already mapped"):
        device.register(memory.data_ptr(), 64)
    torch.zeros(1, device=device.torch_device)
    device.unregister(memory.data_ptr())
    device.unregister(memory.data_ptr())
    torch.zeros(1, device=device.torch_device)


def test_memory_is_registered_for_this_gpu_in_any_thread() -> None:
    with LateDevice(devices=2) as late:
        device = CudaDevice(torch.device("cuda:1"))
        current: list[int] = []
        late.gpus.runtime.began = lambda call: current.append(torch.cuda.current_device())
        memory = torch.zeros(64, dtype=torch.uint8)

        def both() -> None:
            device.register(memory.data_ptr(), 64)
            device.unregister(memory.data_ptr())
            current.append(torch.cuda.current_device())

        thread = threading.Thread(target=both)
        thread.start()
        thread.join()
    assert current == [1, 1, 0]


def test_memory_of_the_host_that_the_device_cannot_read_is_said(
    device: LateDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = torch.zeros(64, dtype=torch.uint8)

    def missing(name: str) -> None:
        raise OSError("cannot open shared object file")

    with monkeypatch.context() as patched:
        patched.setattr(ctypes, "CDLL", missing)
        with pytest.raises(PinFailed, match=r"libcuda.so.1 cannot be loaded \(cannot open"):
            device.over(memory.data_ptr(), 64)
    with pytest.raises(PinFailed, match="is not registered with any CUDA device"):
        device.over(memory.data_ptr(), 64)

    device.register(memory.data_ptr(), 64)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "as_tensor", lambda data, device: torch.zeros(64, dtype=torch.uint8))
        with pytest.raises(PinFailed, match="copied it"):
            device.over(memory.data_ptr(), 64)


def test_page_locked_memory_that_cannot_be_had_is_said(device: LateDevice) -> None:
    device.gpus.fail("pinned", lambda: accelerator_error("CUDA error: out of memory", 2))
    with pytest.raises(PinFailed, match=r"^CUDA error: out of memory$"):
        device.pinned(8)


def test_an_older_torch_keeps_page_locked_memory(device: LateDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    device.pinned(8)
    for empty, held in ((None, 8), (torch._C._host_emptyCache, 0)):
        monkeypatch.setattr(torch._C, "_host_emptyCache", empty)
        device.give_back_pinned()
        assert device.gpus.pinned_bytes == held


def test_free_memory_is_the_kernels_figure_where_the_gpu_shares_the_hosts(device: LateDevice) -> None:
    device.gpus.free_bytes = 1
    assert device.free_memory()[0] == 1
    device.gpus.integrated = True
    assert device.free_memory()[0] > 1


def test_graphs_share_their_memory_and_are_recorded_on_this_gpu(device: LateDevice) -> None:
    x = torch.zeros(4, device=device.torch_device)
    calls = []

    def call() -> torch.Tensor:
        calls.append(torch.cuda.is_current_stream_capturing())
        return x + 1

    device.prepare_capture(call)
    captured = device.capture(call)
    x.fill_(2)
    captured.replay()

    assert captured.output.tolist() == [3, 3, 3, 3]
    assert calls == [False, False, False, True]
    device.give_back()
    assert device.gpus.given_back == 1


@pytest.mark.parametrize("ends_pools", [True, False], ids=["this torch", "an older torch"])
@pytest.mark.parametrize("what", ["the device refuses", "the policy raises"])
def test_after_a_recording_that_failed_another_one_works(
    device: LateDevice, what: str, ends_pools: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ends_pools:
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", None)
    x, compute = torch.ones(4, device=device.torch_device), torch.cuda.current_stream()

    with pytest.raises(RuntimeError if what == "the device refuses" else ZeroDivisionError):
        device.capture(lambda: x.sum().item() if what == "the device refuses" else 1 // 0)

    assert torch.cuda.current_stream() is compute
    captured = device.capture(lambda: x + 1)
    captured.replay()
    assert captured.output.tolist() == [2, 2, 2, 2]
    if ends_pools:
        assert device.gpus.recording_pools == set(), "torch would free no memory that several streams used"


@pytest.mark.parametrize("ahead", [False, True])
def test_copies_do_not_block(device: LateDevice, ahead: bool) -> None:
    host, memory, back = device.pinned(8).fill_(5), device.memory(8), device.pinned(8)
    device.copy_in(memory, host, ahead=ahead)
    device.synchronize()
    device.copy_out(back, memory)

    assert device.gpus.blocked == 0
    device.synchronize()
    assert back.tolist() == [5] * 8


def test_a_copy_ahead_is_on_a_stream_of_its_own(device: LateDevice) -> None:
    targets = [device.memory(8), device.memory(8)]
    for target, ahead in zip(targets, (False, True), strict=True):
        device.copy_in(target, device.pinned(8), ahead=ahead)

    assert device.gpus.copies_in == [(8, False), (8, True)]
    device.synchronize()
