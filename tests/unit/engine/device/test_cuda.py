"""What `device/cuda.py` decides by itself, with the calls of torch.cuda that it makes for that; test_gpu.py is for the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shmserve.daemon.engine.device.cuda import CudaDevice


class Stream:
    """Remembers whom it waits for."""

    def __init__(self) -> None:
        self.waits_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waits_for.append(other)


class Cuda:
    """The part of torch.cuda that a policy may have changed."""

    def __init__(self) -> None:
        self.device = 0
        self.stream = Stream()
        self.errors: list[str] = []

    def current_device(self) -> int:
        return self.device

    def set_device(self, device: int) -> None:
        self.device = device

    def current_stream(self, device: Any) -> Stream:
        assert device == 0
        return self.stream

    def set_stream(self, stream: Stream) -> None:
        self.stream = stream

    def synchronize(self, device: Any) -> None:
        assert device == 0
        if self.errors:
            raise RuntimeError(f"{self.errors.pop(0)}\nCompile with `TORCH_USE_CUDA_DSA` ...")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    found = Cuda()
    for name in ("current_device", "set_device", "current_stream", "set_stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    return found


@pytest.fixture
def device(cuda: Cuda) -> CudaDevice:
    made = object.__new__(CudaDevice)
    made._index, made._compute, made._said_rejoined = 0, cuda.stream, False
    made.torch_device = torch.device("cpu")
    return made


def test_a_policy_that_leaves_another_stream_behind_is_waited_for_and_told_once(
    device: CudaDevice, cuda: Cuda, caplog: pytest.LogCaptureFixture
) -> None:
    compute = cuda.stream
    device.rejoin()
    assert compute.waits_for == []
    for _ in range(2):
        cuda.stream = stray = Stream()
        cuda.device = 1

        device.rejoin()

        assert cuda.stream is compute and cuda.device == 0
        assert compute.waits_for.pop() is stray
    assert caplog.text.count("torch.cuda.set_stream()") == 1


ANOTHER = "CUDA error: invalid argument"
LOST = "CUDA error: unspecified launch failure"
SHORT = "CUDA error: out of memory"


@pytest.mark.parametrize(
    ("errors", "found"),
    [([], None), ([ANOTHER], None), ([LOST, LOST], LOST), ([SHORT, SHORT], None)],
    ids=["none", "forgotten", "stays", "no memory"],
)
def test_an_error_that_stays_is_a_lost_device(
    device: CudaDevice, cuda: Cuda, errors: list[str], found: str | None
) -> None:
    cuda.errors = errors
    assert device.poisoned() == found


def test_a_result_of_another_gpu_is_not_this_ones(device: CudaDevice) -> None:
    there = torch.zeros(3, device="meta")  # any other device than this one's
    assert not device.holds(there)
    assert device.holds(torch.zeros(3))
    assert device.bring(torch.zeros(3)) is None
