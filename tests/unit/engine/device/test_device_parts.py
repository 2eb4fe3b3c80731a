"""Waiting for a device, when to copy directly, whether a model fits, and who is told of a lost device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from shmserve.daemon.engine.device import tuning
from shmserve.daemon.engine.device.context import DeviceContext
from shmserve.daemon.engine.device.errors import DeviceErrorGuard, guarded
from shmserve.daemon.engine.device.memory import (
    DeviceMemoryShort,
    ServingMemory,
    check_room,
    needed_bytes,
)
from shmserve.daemon.engine.device.tuning import SIZES, least_size, measured_threshold
from shmserve.daemon.engine.device.waiting import DeviceWait
from shmserve.daemon.engine.device_failure import DeviceLost
from shmserve.daemon.engine.models.model import PerClient
from shmserve.daemon.host.memory import available_bytes
from shmserve.spin import SpinBudget
from tests.support.late_device import LateDevice

_MIB = 1 << 20


@pytest.fixture
def device() -> Iterator[LateDevice]:
    with LateDevice() as device:
        yield device


class _Timed:
    """An event that passes so long after it was made."""

    def __init__(self, after_s: float) -> None:
        self._ends_s = time.monotonic() + after_s
        self.synchronized = False

    def query(self) -> bool:
        return time.monotonic() >= self._ends_s

    def synchronize(self) -> None:
        self.synchronized = True
        time.sleep(max(0.0, self._ends_s - time.monotonic()))


def waited(wait: DeviceWait, after_s: float) -> tuple[bool, list[int], int]:
    """How the wait for such an event went: slept on it, sleeps on the doorbell (ns), looks."""
    event, sleeps, looks = _Timed(after_s), [], [0]

    def look() -> None:
        looks[0] += 1

    def sleep(timeout_ns: int) -> None:
        sleeps.append(timeout_ns)
        time.sleep(timeout_ns / 1e9)

    wait.until(event, look, sleep)
    assert event.query()
    return event.synchronized, sleeps, looks[0]


def test_a_long_wait_sleeps_on_the_doorbell_once_it_is_known_to_be_long() -> None:
    wait = DeviceWait(SpinBudget("adaptive"))
    slept, sleeps, _ = waited(wait, 0.02)
    assert slept and not sleeps, "nothing is known yet"
    for _ in range(8):
        waited(wait, 0.02)

    _, sleeps, looks = waited(wait, 0.02)

    assert sleeps and sum(sleeps) >= 0.5 * 0.02e9
    assert looks >= 1, "requests that come meanwhile are seen to"


def test_a_wait_for_what_is_done_neither_sleeps_nor_looks() -> None:
    assert waited(DeviceWait(SpinBudget("adaptive")), 0) == (False, [], 0)


def test_without_spinning_every_wait_sleeps() -> None:
    wait = DeviceWait(SpinBudget(0))
    assert [waited(wait, 0.001)[0] for _ in range(3)] == [True] * 3


def test_a_shorter_wait_after_long_ones_ends_within_their_sleep_and_is_learnt() -> None:
    wait = DeviceWait(SpinBudget("adaptive"))
    for _ in range(9):
        waited(wait, 0.01)
    assert wait.sleep_ns > 0

    waited(wait, 0.0)

    assert wait.sleep_ns == 0


def test_an_error_of_the_device_is_raised(device: LateDevice) -> None:
    event = device.event()
    device.record(event)
    device.gpus.poison = "an illegal memory access was encountered"

    with pytest.raises(RuntimeError, match="illegal memory access"):
        DeviceWait(SpinBudget(0)).until(event, lambda: None, lambda ns: None)


def test_the_direct_way_must_be_faster_from_its_size_on() -> None:
    assert least_size({1: 10, 2: 10, 4: 10}, {1: 9, 2: 9, 4: 9}) == 1
    assert least_size({1: 10, 2: 10, 4: 10}, {1: 5, 2: 10, 4: 9}) == 4
    assert least_size({1: 10, 2: 10, 4: 10}, {1: 5, 2: 5, 4: 9.5}) is None  # type: ignore[dict-item]


def test_the_threshold_is_measured_and_leaves_nothing_registered(
    device: LateDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_ROUNDS", 1)
    assert measured_threshold(device) in (None, *SIZES)
    assert device.gpus.registered == {}
    assert {size for size, _ in device.gpus.copies_in} == set(SIZES)


@pytest.mark.parametrize("setting", [{"registers": False}, {"pin_limit": 1}, {"memory_limit": 1}], ids=str)
def test_there_is_no_threshold_where_nothing_can_be_registered(setting: dict[str, Any]) -> None:
    with LateDevice(**setting) as device:
        assert measured_threshold(device) is None
        assert device.gpus.registered == {}


def test_a_measurement_that_fails_unregisters_after_its_copies(
    device: LateDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_ROUNDS", 1)
    monkeypatch.setattr(tuning, "SIZES", (1024, 4096))
    device.gpus.fail("record", lambda: torch.OutOfMemoryError("CUDA out of memory."), after=3)

    assert measured_threshold(device) is None
    assert device.gpus.registered == {}


def test_the_memory_of_a_model_is_declared_or_scaled_from_the_serving_one() -> None:
    beside = ServingMemory(model_bytes=3000 * _MIB, package_bytes=1000 * _MIB)

    assert needed_bytes(10, 77, beside) == (77, "its device_bytes")
    needed, why = needed_bytes(2000 * _MIB, None, beside)
    assert needed == 6000 * _MIB
    assert "3000 MiB of the model that serves" in why and "device_bytes" in why
    assert needed_bytes(1000, None, ServingMemory(0, 0))[0] == 1200


def test_a_model_that_does_not_fit_is_refused_with_the_numbers_and_the_way_out() -> None:
    check_room(100 * _MIB, 200 * _MIB, 100 * _MIB, "", "cuda:0")

    with pytest.raises(DeviceMemoryShort, match=r"cuda:0 has 99 MiB free of 200 .* about 100 \(so\); .*--in-place"):
        check_room(99 * _MIB, 200 * _MIB, 100 * _MIB, "so", "cuda:0")


def test_memory_that_libraries_took_beside_torch_is_of_the_model(device: LateDevice) -> None:
    before = device.memory(5 * _MIB)
    context = DeviceContext(device, max_batch=1, register_bytes=None)
    model = device.memory(3 * _MIB)
    device.gpus.library_bytes = 700 * _MIB  # a TensorRT engine
    assert context.report()["library_bytes"] == 700 * _MIB
    assert context.report()["model_bytes"] == before.numel() + model.numel() + 700 * _MIB

    device.gpus.library_bytes = 9000 * _MIB  # another process, after the load
    assert context.report()["library_bytes"] == 700 * _MIB


def test_memory_that_another_process_gave_back_during_the_load_is_not_counted(device: LateDevice) -> None:
    device.gpus.library_bytes = 700 * _MIB
    context = DeviceContext(device, max_batch=1, register_bytes=None)
    device.gpus.library_bytes = 0
    assert (context.report()["library_bytes"], context.report()["model_bytes"]) == (0, 0)


def test_memory_that_the_kernel_would_give_up_is_free() -> None:
    assert available_bytes("MemTotal:  16 kB\nMemFree: 1 kB\nMemAvailable:  9 kB\n") == 9 * 1024
    assert available_bytes("MemTotal: 16 kB\n") is None


class _Raises:
    batches = False
    takes_numpy = True
    resets = False

    def __init__(self, error: Exception) -> None:
        self._error = error

    def infer(self, observations: list[Any]) -> list[Any]:
        raise self._error

    def reset(self, client_id: int) -> None: ...

    def example_observation(self) -> Any: ...

    def metadata(self) -> dict[str, Any]:
        return {}


def test_a_numpy_policy_that_loses_its_device_takes_the_engine_along(device: LateDevice) -> None:
    with pytest.raises(ValueError, match="wrong"):
        DeviceErrorGuard(_Raises(ValueError("wrong")), device).infer([])
    with pytest.raises(torch.OutOfMemoryError):
        DeviceErrorGuard(_Raises(torch.OutOfMemoryError("CUDA out of memory")), device).infer([])
    for text in ("CUDA error: out of memory", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "RESOURCE_EXHAUSTED: 4 GiB"):
        with pytest.raises(torch.OutOfMemoryError, match=text):
            DeviceErrorGuard(_Raises(RuntimeError(text)), device).infer([])
    assert device.gpus.given_back == 4
    device.gpus.poison = "device-side assert triggered"

    with pytest.raises(DeviceLost, match="device-side assert"):
        DeviceErrorGuard(_Raises(RuntimeError("CUDA error: ...")), device).infer([])


class _PerClient(_Raises):
    def infer_for(self, observations: list[Any], client_ids: Any) -> list[Any]:
        return list(client_ids)

    def client_left(self, client_id: int) -> None:
        raise self._error


def test_a_numpy_policy_on_a_device_is_told_whose_request_it_is(device: LateDevice) -> None:
    model = guarded(_PerClient(RuntimeError("CUDA error: ...")), device)
    assert isinstance(model, PerClient)
    assert model.infer_for([{}, {}], [3, 5]) == [3, 5]
    assert not isinstance(guarded(_Raises(ValueError()), device), PerClient)
    device.gpus.poison = "device-side assert triggered"

    with pytest.raises(DeviceLost, match="device-side assert"):
        model.client_left(3)
