"""Rows whose arrays a client has put into GPU memory: copied within the late GPU, and never read after the answer."""

from __future__ import annotations

import ctypes
import os
import socket
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from shmserve.client.device_memory import DeviceLeaves, SharedArea
from shmserve.codec import Encoded, Encoder, SlotMemory
from shmserve.daemon.engine.device.area_orders import AreaOrders
from shmserve.daemon.engine.device.areas import Area, Areas
from shmserve.daemon.engine.device.interface import SharingFailed
from shmserve.daemon.engine.loop.loop import EngineLoop
from shmserve.daemon.ipc.messages import AREA_ANSWERS, AllocateArea, AreaAllocated, AreaRefused, decode
from shmserve.layout import number_of, slot_of
from shmserve.protocol import Status
from shmserve.varlink_socket import receive_with_fds
from tests.support.device_engine import Client, DeviceEngine
from tests.support.device_model import Made, assert_serves
from tests.support.late_device import LateDevice
from tests.support.late_driver import GpuArray, loaded

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this process has a real driver")

_SLOTS = 4
_AREA = 4096


class GivingEncoder(Encoder):
    """Puts the arrays where the client's pipeline would, before the request is published."""

    def __init__(self, client: Client, area: SharedArea) -> None:
        self._leaves = DeviceLeaves()
        super().__init__(on_device=self._leaves)
        self._client, self._area = client, area

    def encode(self, tree: Any, slot: SlotMemory) -> Encoded:
        encoded = super().encode(tree, slot)
        number = number_of(self._client.channel.requests.published()) + 1
        self._leaves.give(self._area, number % _SLOTS)
        return encoded


class Sharing:
    """Clients of an engine that have GPU memory."""

    def __init__(self, engine: DeviceEngine, *, engine_area: int = _AREA) -> None:
        loaded()
        self.engine = engine
        engine.context.areas = self._areas = Areas(engine.device)
        self.areas = []
        for client in engine.clients:
            area, descriptor = self._areas.allocate(_AREA, _SLOTS)
            self._areas.use(client.state.number, Area(area.memory, engine_area, _SLOTS))
            self.areas.append(SharedArea(descriptor, _AREA, _SLOTS, area.memory.size, self._areas.gpu))
            os.close(descriptor)
            client._encoder = GivingEncoder(client, self.areas[-1])
        engine.context.make_room(4096 + _AREA)

    def overwrite(self, client: int, sequence: int) -> None:
        """Write to the area of a request's slot, as its client may after the answer."""
        start = self.areas[client]._memory.address + slot_of(sequence) * _AREA
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * _AREA).from_address(start))
        memory[:] = 0xEE

    def close(self) -> None:
        for area in self.areas:
            area.close()
        for client in self.engine.clients:
            self._areas.forget(client.state.number)
        assert self._areas.bytes == 0


@pytest.fixture
def sharing(make: Made) -> Any:
    before = loaded().late_mapped_bytes()
    sharing = Sharing(make())
    yield sharing
    sharing.close()
    assert loaded().late_mapped_bytes() == before


def values(value: float, size: int = 100) -> Any:
    return np.full(size, value, np.float32)


def on_gpu(value: float, size: int = 100) -> dict[str, Any]:
    return {"x": GpuArray(values(value, size)), "step": 3, "state": np.arange(5.0), "task": "fold"}


def test_new_memory_shows_nothing_of_other_processes(sharing: Sharing) -> None:
    for area in sharing.areas:
        memory = (ctypes.c_uint8 * area._memory.size).from_address(area._memory.address)
        assert not np.ctypeslib.as_array(memory).any()


@pytest.mark.parametrize("waits", [True, False])
def test_an_area_is_replaced_only_if_the_supervisor_takes_the_new_one(waits: bool, sharing: Sharing) -> None:
    areas = sharing.engine.context.areas
    assert areas is not None
    before, mapped = areas.of(0), loaded().late_mapped_bytes()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not waits:
        ours.close()
    loop = cast(EngineLoop, SimpleNamespace(states={}))

    AreaOrders(areas, loop, lambda *_, **__: None).carry_out(AllocateArea(0, 8192, _SLOTS), [theirs.detach()])

    if not waits:
        assert areas.of(0) is before
        assert loaded().late_mapped_bytes() == mapped
        return
    frame, (descriptor,), _ = receive_with_fds(ours, 4096, 1)
    ours.close()
    os.close(descriptor)
    assert decode(frame[:-1], AREA_ANSWERS) == (AreaAllocated(2 << 20, "10" * 16), 1)
    assert areas.area_bytes(0) == 8192
    assert loaded().late_mapped_bytes() == mapped  # the earlier one is given back


def test_a_refusal_has_cudas_words_and_leaves_nothing(sharing: Sharing, monkeypatch: pytest.MonkeyPatch) -> None:
    areas = sharing.engine.context.areas
    assert areas is not None
    before, opened = areas.of(0), len(os.listdir("/proc/self/fd"))
    loop = cast(EngineLoop, SimpleNamespace(states={}))
    for call, reason in (("cuMemCreate=2", "no_memory"), ("cuMemMap=1", "failed"), ("cuDeviceGetUuid=1", "failed")):
        monkeypatch.setenv("LATE_DRIVER_FAIL", call)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            AreaOrders(areas, loop, lambda *_, **__: None).carry_out(AllocateArea(0, 8192, 4), [theirs.detach()])
            answer, _ = decode(ours.recv(4096)[:-1], AREA_ANSWERS)

        assert isinstance(answer, AreaRefused)
        assert (answer.reason, answer.message.split(":")[0]) == (reason, call.split("=")[0])
    assert areas.of(0) is before
    assert len(os.listdir("/proc/self/fd")) == opened


def test_rows_of_both_kinds_share_a_batch(sharing: Sharing) -> None:
    engine = sharing.engine
    first, second, third = engine.clients
    for turn in range(6):
        sent = [
            (first, first.submit(on_gpu(turn)), turn),
            (second, second.submit({"x": values(turn + 1)}), turn + 1),
            (third, third.submit(on_gpu(turn + 2)), turn + 2),
        ]
        engine.run()
        for client, sequence, value in sent:
            np.testing.assert_array_equal(client.reply(sequence)["y"], values(2 * value))
            sharing.overwrite(client.state.number, sequence)
    assert engine.device.gpus.copies_shared == [400] * 12
    assert_serves(engine)


def test_batches_that_are_copied_ahead_have_no_race(sharing: Sharing) -> None:
    engine = sharing.engine
    first, second, _ = engine.clients
    before = first, first.submit(on_gpu(0)), 0
    engine.stage()
    for turn in range(1, 9):
        assert engine.launch()
        client = (first, second)[turn % 2]
        after = client, client.submit(on_gpu(turn)), turn
        engine.stage(ahead=True)
        engine.finish()
        client, sequence, value = before
        np.testing.assert_array_equal(client.reply(sequence)["y"], values(2 * value))
        sharing.overwrite(client.state.number, sequence)
        before = after
    assert engine.launch()
    engine.finish()


def test_an_answer_without_a_run_waits_for_the_copy_as_well(sharing: Sharing) -> None:
    engine = sharing.engine
    first, second, _ = engine.clients
    running = first.submit(on_gpu(1))
    engine.stage()
    engine.launch()
    cancelled = second.submit(on_gpu(2))
    engine.stage(ahead=True)
    second.channel.requests.cancel(cancelled)
    engine.finish()

    assert not engine.launch()
    assert second.status(cancelled) == Status.CANCELLED
    sharing.overwrite(1, cancelled)

    np.testing.assert_array_equal(first.reply(running)["y"], values(2))
    assert_serves(engine)


def test_a_request_whose_arrays_are_not_in_its_area_is_rejected(make: Made) -> None:
    engine = make()
    sharing = Sharing(engine, engine_area=256)  # as if the client lied about the sizes
    try:
        client = engine.clients[0]
        sequence = client.submit(on_gpu(1))
        engine.run()

        assert client.status(sequence) == Status.REJECTED
        assert "beyond their slot's area" in client.reply(sequence)[1]
        assert_serves(engine)
    finally:
        sharing.close()


@pytest.mark.parametrize("takes_any", [False, True])
def test_a_request_of_a_client_without_an_area_is_rejected(takes_any: bool, sharing: Sharing) -> None:
    engine, client = sharing.engine, sharing.engine.clients[0]
    sequence = client.submit(on_gpu(1))
    areas = engine.context.areas
    assert areas is not None
    areas.forget(client.state.number)
    if not takes_any:
        engine.context.areas = None
    engine.run()

    assert client.status(sequence) == Status.REJECTED
    assert "send it from the host" in client.reply(sequence)[1]
    assert_serves(engine)


def test_an_array_that_has_no_room_in_the_arena_is_rejected(sharing: Sharing) -> None:
    engine, client = sharing.engine, sharing.engine.clients[0]
    sequence = client.submit(on_gpu(1, 1000))
    for arena in engine.context.arenas:
        arena._bytes = arena._bytes[:3000]
        arena.host = arena.host[:3000]
    engine.run()

    assert client.status(sequence) == Status.REJECTED
    assert "have room" in client.reply(sequence)[1]


def test_a_policy_may_keep_such_an_array(sharing: Sharing) -> None:
    engine, client = sharing.engine, sharing.engine.clients[0]
    kept: list[torch.Tensor] = []

    def keep(observations: list[Any]) -> list[Any]:
        kept.extend(observation["x"] for observation in observations)
        return [{"y": observation["x"] * 2} for observation in observations]

    engine.serving._model.answer = keep  # type: ignore[attr-defined]
    for turn in range(5):
        sequence = client.submit(on_gpu(turn))
        engine.run()
        sharing.overwrite(0, sequence)

    assert [tensor.cpu().tolist() for tensor in kept] == [[float(turn)] * 100 for turn in range(5)]


def test_a_copy_ahead_waits_for_the_model_before_it(sharing: Sharing) -> None:
    def answer(observations: list[Any]) -> list[Any]:
        observations[0]["x"] * 2  # still runs when the action, which is on the host, is answered
        return [{"y": np.ones(3)} for _ in observations]

    engine, client = sharing.engine, sharing.engine.clients[0]
    engine.serving._model.answer = answer  # type: ignore[attr-defined]
    for turn in range(6):
        sequence = client.submit(on_gpu(turn))
        engine.stage(ahead=turn > 0)
        engine.launch()
        engine.finish()
        assert client.status(sequence) == Status.OK


def test_memory_that_torch_cannot_use_is_said_and_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: object, device: object) -> None:
        raise RuntimeError("CUDA error: invalid argument\nmore advice")

    late = loaded()
    with LateDevice() as device:
        descriptor, size = device.create_shared(1)
        before = late.late_mapped_bytes()
        monkeypatch.setattr(torch, "as_tensor", refuse)

        with pytest.raises(SharingFailed, match=r"^CUDA error: invalid argument$"):
            device.map_shared(descriptor, size)

        assert late.late_mapped_bytes() == before
    os.close(descriptor)
