"""Which values of an observation count as arrays in GPU memory, and what is asked of the service for them; no GPU, no daemon."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shmserve.carried_values import ON_DEVICE
from shmserve.client import device_memory
from shmserve.client.contract_check import declared_sizes
from shmserve.client.device_memory import DeviceLeaves, SharedArea
from shmserve.codec import DoesNotFit
from shmserve.contract import describe_tree
from shmserve.errors import DeviceArrayRefused


class Array:
    def __init__(self, **entries: Any) -> None:
        whole = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "version": 3}
        self.__cuda_array_interface__ = {**whole, **entries}


class TensorOnGpu(torch.Tensor):  # type: ignore[misc]
    is_cuda = True


class Area:
    """As a SharedArea: what is written where."""

    slots = 2

    def __init__(self, area_bytes: int) -> None:
        self.area_bytes = area_bytes
        self.written: list[Any] = []

    def write(self, slot: int, arrays: Any, offsets: Any) -> None:
        self.written.append((slot, [array.size for array in arrays], list(offsets)))


def area_of(area_bytes: int) -> Any:
    return Area(area_bytes)


@pytest.mark.parametrize("value", [np.ones(2), torch.ones(2), 3, "text", object(), None])
def test_other_values_are_left_to_the_usual_conversion(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "carried", lambda given: (0, given))

    assert DeviceLeaves().convert(value) == (0, value)


@pytest.mark.parametrize("strides", [None, (12, 4)])
def test_an_array_in_c_order_is_described(strides: Any) -> None:
    leaves = DeviceLeaves()

    assert leaves.convert(Array(strides=strides)) == (ON_DEVICE, ("<f4", (2, 3)))
    assert [(array.size, array.address) for array in leaves.met] == [(24, 4096)]


@pytest.mark.parametrize(
    ("shape", "strides", "taken"),
    [
        ((2, 3), (4, 8), False),
        ((2, 3), (16, 4), False),
        ((1, 3), (400, 4), True),  # numpy and cupy take any stride where the length is 1
        ((0, 3), (1, 1), True),
        ((3,), (-4,), False),
        ((), (), True),
    ],
)
def test_another_order_is_refused_with_the_remedy(shape: Any, strides: Any, taken: bool) -> None:
    leaves = DeviceLeaves()
    if taken:
        assert leaves.convert(Array(shape=shape, strides=strides))[0] == ON_DEVICE
        return
    with pytest.raises(DeviceArrayRefused, match=r"\.contiguous\(\)") as refused:
        leaves.convert(Array(shape=shape, strides=strides))
    assert refused.value.reason == "layout"


def test_arrays_lie_one_after_the_other_on_boundaries() -> None:
    leaves, area = DeviceLeaves(), area_of(1024)
    for entries in ({"shape": (65,)}, {"shape": (0,)}, {"shape": (), "typestr": "<f8"}, {"shape": (64,)}):
        leaves.convert(Array(**entries))

    leaves.give(area, 1)

    assert area.written == [(1, [260, 0, 8, 256], [0, 512, 512, 768])]
    assert leaves.met == []


@pytest.mark.parametrize("area", [None, area_of(255), area_of(1024)])
def test_an_area_that_is_too_small_is_asked_for_anew(area: Any) -> None:
    leaves = DeviceLeaves()
    leaves.convert(Array(shape=(64,)))
    slot = 2 if area is not None and area.area_bytes == 1024 else 0  # a slot that the area has not

    with pytest.raises(DoesNotFit) as needed:
        leaves.give(area, slot)

    assert needed.value.device_bytes == 256
    leaves.want(needed.value.device_bytes, area)
    assert leaves.wanted == {None: 256, 255: 382, 1024: 1536}[area and area.area_bytes]
    assert leaves.lacks(area, 2)


def test_a_service_that_takes_none_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves, refusal = DeviceLeaves(), DeviceArrayRefused("not there", reason="off")
    leaves.want(256, None)
    assert leaves.lacks(None, 2)

    leaves.refuse(refusal, None)

    assert not leaves.lacks(None, 2)
    with pytest.raises(DeviceArrayRefused, match="not there"):
        leaves.convert(Array())
    tensor = torch.ones(2).as_subclass(TensorOnGpu)
    monkeypatch.setattr(device_memory, "carried", lambda given: (77, given))
    assert leaves.convert(tensor) == (77, tensor)
    leaves.attached()
    assert leaves.convert(Array())[0] == ON_DEVICE


def test_less_is_asked_for_if_the_headroom_is_too_much() -> None:
    leaves, area, refusal = DeviceLeaves(), area_of(1000), DeviceArrayRefused("too much", reason="too_many_bytes")
    leaves.want(1200, area)
    assert leaves.wanted == 1500

    assert leaves.refuse(refusal, area)

    assert leaves.wanted == 1200
    with pytest.raises(DeviceArrayRefused):
        leaves.refuse(refusal, area)


def test_a_refusal_of_the_size_is_raised_and_the_next_array_is_asked_for() -> None:
    leaves, area = DeviceLeaves(), area_of(512)
    leaves.want(1 << 30, area)

    with pytest.raises(DeviceArrayRefused, match="too many"):
        leaves.refuse(DeviceArrayRefused("too many", reason="too_large"), area)

    assert not leaves.lacks(area, 2)
    assert leaves.convert(Array())[0] == ON_DEVICE


def test_a_tensor_on_a_gpu_is_taken_with_its_streams_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        cuda_stream = 0

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream)
    leaves, tensor = DeviceLeaves(), torch.ones(2, 3, dtype=torch.bfloat16).as_subclass(TensorOnGpu)

    assert leaves.convert(tensor) == (ON_DEVICE, ("<bf2", (2, 3)))
    Stream.cuda_stream = 77
    leaves.convert(tensor)
    assert [(array.stream, array.size, array.address) for array in leaves.met] == [
        (stream, 12, tensor.data_ptr()) for stream in (1, 77)
    ]


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.ones(2, 3).t(), r"\.contiguous\(\)"),
        (torch.ones(2, dtype=torch.complex64).conj(), r"resolve_conj\(\)"),
        (torch.ones(2).to(torch.float8_e5m2), "no dtype that is carried"),
    ],
)
def test_a_tensor_that_cannot_be_taken_says_what_to_do(tensor: Any, text: str) -> None:
    with pytest.raises(DeviceArrayRefused, match=text):
        DeviceLeaves().convert(tensor.as_subclass(TensorOnGpu))


def test_the_contract_sees_dtype_and_shape() -> None:
    tree = {"image": Array(shape=(4, 6, 3), typestr="|u1")}

    assert describe_tree(tree) == {"image": {"dtype": "uint8", "shape": [4, 6, 3]}}
    assert declared_sizes({}, {"image": {"dtype": "uint8", "shape": [4, -1, 3]}}, tree) == (4, -1, 3)


def test_a_forked_child_does_not_touch_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    area = SharedArea.__new__(SharedArea)
    area._pid = 0

    area.close()  # without a driver
