"""A device without memory, one that is lost, and copies under way: one request pays. On the late GPU, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.daemon.engine.device import loop
from shmserve.daemon.engine.device.loop import IdleDevice
from shmserve.daemon.engine.device_failure import DeviceLost
from shmserve.protocol import Status
from tests.support.device_engine import DeviceEngine
from tests.support.device_model import SHORT, Made, Model, assert_serves, model, x

LOST = "unspecified launch failure"


# A device that is lost


def test_a_device_that_is_lost_before_a_request_comes_is_noticed_by_it(engine: DeviceEngine) -> None:
    assert_serves(engine)
    sequence = engine.clients[0].submit(x(1))
    engine.device.gpus.poison = LOST

    with pytest.raises(DeviceLost, match=LOST):
        engine.stage()
    assert engine.clients[0].head(sequence) is None, "it is the next engine's to answer"


def test_a_device_that_is_lost_between_staging_and_launch_is_noticed(engine: DeviceEngine) -> None:
    sequence = engine.clients[0].submit(x(1))
    engine.stage()
    engine.device.gpus.poison = LOST

    with pytest.raises(DeviceLost, match=LOST):
        engine.launch()
    assert engine.clients[0].head(sequence) is None


def test_a_device_that_is_lost_while_it_works_is_noticed_by_what_is_staged_ahead(engine: DeviceEngine) -> None:
    for client, ahead in zip(engine.clients, (False, True), strict=False):
        client.submit(x(1))
        if ahead:
            client.state.look(time.monotonic_ns())
            engine.serving.stage(client.state, client.state.waiting.popleft(), ahead=True)
            engine.device.gpus.poison = LOST
        else:
            engine.stage()
            engine.launch()

    with pytest.raises(DeviceLost, match=LOST):
        engine.serving.send_ahead()


@pytest.mark.fault("T86")
@pytest.mark.parametrize("who", ["make_room", "report", "idle"])
def test_a_lost_device_is_noticed_outside_of_requests(engine: DeviceEngine, who: str) -> None:
    idle = IdleDevice(engine.device, query_interval_ns=0)
    idle.look(time.monotonic_ns())
    engine.device.gpus.poison = LOST
    calls: dict[str, Callable[[], Any]] = {
        "make_room": lambda: _attached(engine),
        "report": engine.context.report,
        "idle": lambda: idle.look(time.monotonic_ns()),
    }

    with pytest.raises(DeviceLost, match=LOST):
        calls[who]()


def _attached(engine: DeviceEngine) -> None:
    """What the loop does for a client whose requests are larger than those before."""
    made = object.__new__(loop.DeviceLoop)
    made._context = engine.context
    state = engine.clients[0].state
    geometry = state.channel.requests.segment.geometry
    state.channel.requests.segment.geometry = geometry.__class__(geometry.slots, 4096, 1 << 20)
    try:
        made._make_room(state)
    finally:
        state.channel.requests.segment.geometry = geometry


# No memory


@pytest.mark.parametrize("how", SHORT)
def test_a_model_that_finds_no_memory_fails_its_request_and_what_is_cached_is_given_back(
    engine: DeviceEngine, how: str
) -> None:
    def answer(observations: list[Any]) -> list[Any]:
        raise SHORT[how]()

    model(engine).answer = answer
    client = engine.clients[0]
    sequence = client.submit(x(1))
    engine.run()

    assert client.status(sequence) == Status.FAILED
    assert client.reply(sequence)[0] == "OutOfMemoryError"
    assert engine.device.gpus.given_back == 1
    model(engine).answer = Model.double
    assert_serves(engine)


@pytest.mark.parametrize("how", ["torch", "runtime"])
def test_a_policy_that_keeps_until_there_is_no_memory_fails_requests_and_ends_no_engine(make: Made, how: str) -> None:
    engine = make(payload_bytes=4096, memory_total=200_000)
    engine.device.gpus.out_of_memory = lambda text: SHORT[how]()
    kept: list[torch.Tensor] = []

    def answer(observations: list[Any]) -> list[Any]:
        kept.extend(observation["x"] for observation in observations)
        return Model.double(observations)

    model(engine).answer = answer
    client = engine.clients[0]
    said = []
    for turn in range(30):
        sequence = client.submit(x(turn))
        engine.run()
        said.append(client.status(sequence))
        if said[-1] != Status.OK:
            assert client.reply(sequence)[0] == "OutOfMemoryError"
    assert said[0] == Status.OK and said[-1] == Status.FAILED
    assert [float(tensor[-1]) for tensor in kept] == [float(turn) for turn in range(len(kept))]

    kept.clear()
    model(engine).answer = Model.double
    assert_serves(engine)


def test_memory_that_cannot_be_made_larger_is_left_as_it_was(make: Made) -> None:
    engine = make(payload_bytes=4096, memory_limit=1 << 16)
    before = [(arena.size, arena.memory.data_ptr()) for arena in engine.context.arenas]

    with pytest.raises(torch.OutOfMemoryError):
        engine.context.make_room(1 << 20)

    assert [(arena.size, arena.memory.data_ptr()) for arena in engine.context.arenas] == before
    assert engine.device.gpus.given_back == 1
    kept: list[Any] = []
    model(engine).answer = lambda observations: [kept.append(o["x"]) or {"y": o["x"] * 2} for o in observations]  # type: ignore[func-returns-value]
    assert_serves(engine)
    assert_serves(engine)


def test_of_two_arenas_both_are_made_larger_or_none(make: Made) -> None:
    engine = make(payload_bytes=4096, memory_total=100_000)
    before = [arena.size for arena in engine.context.arenas]

    with pytest.raises(torch.OutOfMemoryError):
        engine.context.make_room(15_000)

    assert [arena.size for arena in engine.context.arenas] == before
    assert_serves(engine)


# What cannot be read


def test_requests_that_cannot_be_read_take_no_room_from_others(engine: DeviceEngine) -> None:
    client = engine.clients[0]
    for _ in range(50):
        memory = client.channel.requests
        sequence = client.submit({"x": np.ones(100, np.float32), "text": "y" * 300})
        payload = memory.memory(sequence).payload
        payload[payload == ord("y")] = 0xFF  # no UTF-8
        engine.run()
        assert client.status(sequence) == Status.REJECTED

    assert_serves(engine)
    engine.context.make_room(1 << 16)


class Holder:
    """What a trusted client may send."""

    def __init__(self, values: Any) -> None:
        self.values = values


def test_pickled_requests_of_one_client_in_one_batch_are_each_its_own(engine: DeviceEngine) -> None:
    kept: list[Any] = []

    def answer(observations: list[Any]) -> list[Any]:
        kept.extend(observation["held"].values for observation in observations)
        return [{"sum": float(observation["held"].values.sum())} for observation in observations]

    model(engine).answer = answer
    client = engine.clients[0]
    for turn in range(3):
        sent = [client.submit({"held": Holder(np.full(50, 10.0 * turn + row))}) for row in range(4)]
        engine.stage()
        assert engine.serving.staged == 4
        engine.launch()
        engine.finish()
        assert [client.reply(sequence)["sum"] for sequence in sent] == [50 * (10.0 * turn + row) for row in range(4)]
    assert [float(values[0]) for values in kept] == [10.0 * turn + row for turn in range(3) for row in range(4)]
