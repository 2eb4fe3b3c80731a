"""A device without memory, one that is lost, and copies under way: one request pays. On the fake device, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fuzz.echo_model import EchoModel
from shmserve.daemon.engine.channel.channel_state import ChannelState
from shmserve.daemon.engine.device import loop
from shmserve.daemon.engine.device.loop import DeviceLoop, IdleDevice
from shmserve.daemon.engine.device_failure import DeviceLost
from shmserve.protocol import Status
from shmserve.spin import SpinBudget
from tests.support.daemon_process import POLICIES
from tests.support.device_engine import DeviceEngine
from tests.support.fake_device import FakeDevice

LOST = "unspecified launch failure"
#: How torch and CUDA's libraries say that there is no memory.
SHORT: dict[str, Callable[[], Exception]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."),
    "runtime": lambda: RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` ..."),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cudnn": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "driver": lambda: RuntimeError("Triton Error [CUDA]: out of memory"),
}


class Model(EchoModel):
    """Doubles `x` on the device; does something else if a test says so."""

    batches = True

    def __init__(self) -> None:
        self.answer: Callable[[list[Any]], list[Any]] = self.double

    def infer(self, observations: list[Any]) -> list[Any]:
        return self.answer(observations)

    @staticmethod
    def double(observations: list[Any]) -> list[Any]:
        return [{"y": observation["x"] * 2} for observation in observations]


Made = Callable[..., DeviceEngine]


@pytest.fixture
def make() -> Iterator[Made]:
    engines: list[DeviceEngine] = []

    def make(**settings: Any) -> DeviceEngine:
        fake = {name: settings.pop(name) for name in ("memory_limit", "memory_total") if name in settings}
        engines.append(DeviceEngine(Model(), device=FakeDevice(**fake), **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.device.poison = None
        engine.close()


@pytest.fixture
def engine(make: Made) -> DeviceEngine:
    return make()


def model(engine: DeviceEngine) -> Model:
    found = engine.serving._model
    assert isinstance(found, Model)
    return found


def x(value: float, size: int = 100) -> dict[str, Any]:
    return {"x": np.full(size, value, np.float32)}


def assert_serves(engine: DeviceEngine) -> None:
    """Two batches, one for each arena."""
    for turn in range(2):
        sent = [client.submit(x(turn + row)) for row, client in enumerate(engine.clients)]
        engine.run()
        for row, (client, sequence) in enumerate(zip(engine.clients, sent, strict=True)):
            np.testing.assert_array_equal(client.reply(sequence)["y"], np.full(100, 2.0 * (turn + row)))


# A device that is lost


def test_a_device_that_is_lost_before_a_request_comes_is_noticed_by_it(engine: DeviceEngine) -> None:
    assert_serves(engine)
    sequence = engine.clients[0].submit(x(1))
    engine.device.poison = LOST

    with pytest.raises(DeviceLost, match=LOST):
        engine.stage()
    assert engine.clients[0].head(sequence) is None, "it is the next engine's to answer"


def test_a_device_that_is_lost_between_staging_and_launch_is_noticed(engine: DeviceEngine) -> None:
    sequence = engine.clients[0].submit(x(1))
    engine.stage()
    engine.device.poison = LOST

    with pytest.raises(DeviceLost, match=LOST):
        engine.launch()
    assert engine.clients[0].head(sequence) is None


def test_a_device_that_is_lost_while_it_works_is_noticed_by_what_is_staged_ahead(engine: DeviceEngine) -> None:
    for client, ahead in zip(engine.clients, (False, True), strict=False):
        client.submit(x(1))
        if ahead:
            client.state.look(time.monotonic_ns())
            engine.serving.stage(client.state, client.state.waiting.popleft(), ahead=True)
            engine.device.poison = LOST
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
    engine.device.poison = LOST
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
    assert engine.device.given_back == 1
    model(engine).answer = Model.double
    assert_serves(engine)


@pytest.mark.parametrize("how", ["torch", "runtime"])
def test_a_policy_that_keeps_until_there_is_no_memory_fails_requests_and_ends_no_engine(make: Made, how: str) -> None:
    engine = make(payload_bytes=4096, memory_total=200_000)
    engine.device.out_of_memory = lambda text: SHORT[how]()
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
    assert engine.device.given_back == 1
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


# What a policy does to its tensors


def test_a_policy_may_change_the_shape_of_what_it_gets(engine: DeviceEngine) -> None:
    shapes: list[Any] = []

    def answer(observations: list[Any]) -> list[Any]:
        for observation in observations:
            shapes.append(tuple(observation["x"].shape))
            observation["x"].unsqueeze_(0).note = "mine"
            assert len(vars(observation["x"])) == 1
        return Model.double(observations)

    model(engine).answer = answer
    for turn in range(6):
        sequence = engine.clients[0].submit(x(turn))
        engine.run()
        assert engine.clients[0].status(sequence) == Status.OK

    assert shapes == [(100,)] * 6


def test_an_action_on_another_gpu_is_brought_over_first(engine: DeviceEngine) -> None:
    def answer(observations: list[Any]) -> list[Any]:
        actions = [{"y": torch.zeros(100)} for _ in observations]
        for found, action in zip(Model.double(observations), actions, strict=True):
            engine.device.elsewhere[action["y"].data_ptr()] = found["y"]
        kept.extend(actions)
        return actions

    kept: list[Any] = []
    model(engine).answer = answer
    assert_serves(engine)


def test_a_policy_that_changes_the_stream_gets_its_own_action_back(engine: DeviceEngine) -> None:
    def answer(observations: list[Any]) -> list[Any]:
        engine.device.strayed = True
        return Model.double(observations)

    model(engine).answer = answer
    assert_serves(engine)


# Copies that are under way


def test_memory_that_a_failed_model_still_reads_is_not_written_to_ahead(engine: DeviceEngine) -> None:
    client, other, third = engine.clients

    def fails(observations: list[Any]) -> list[Any]:
        engine.device.reads(observations[0]["x"])
        raise LookupError("after its first kernels")

    model(engine).answer = fails
    client.submit(x(1))
    engine.run()
    model(engine).answer = Model.double
    other.submit(x(2))
    engine.stage()
    engine.launch()
    ahead = third.submit(x(3))
    engine.stage(ahead=True)
    engine.finish()
    assert engine.launch()
    engine.finish()

    np.testing.assert_array_equal(third.reply(ahead)["y"], np.full(100, 6.0))


@pytest.fixture
def direct(make: Made) -> DeviceEngine:
    """Every observation is copied from its client's own memory, and every action is the host's own."""
    engine = make(register_bytes=1)
    model(engine).answer = lambda observations: [{"y": np.ones(3)} for _ in observations]
    return engine


def write_again(engine: DeviceEngine, sequence: int, client: int = 0) -> None:
    """What a client may do with a slot whose request is answered."""
    assert engine.clients[client].head(sequence) is not None
    engine.clients[client].channel.requests.memory(sequence).payload[:] = 0xEE


def test_an_answered_request_is_not_read_again(direct: DeviceEngine) -> None:
    kept: list[torch.Tensor] = []
    model(direct).answer = lambda observations: [
        kept.append(observation["x"]) or {"y": np.ones(3)}  # type: ignore[func-returns-value]
        for observation in observations
    ]
    for turn in range(5):
        sequence = direct.clients[0].submit(x(turn))
        direct.run()
        write_again(direct, sequence)
    direct.device.synchronize()

    assert [float(tensor[7]) for tensor in kept] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_small_payloads_are_not_copied_ahead(make: Made) -> None:
    engine = make(register_bytes=2000)
    client = engine.clients[0]
    sequence = client.submit(x(3))
    engine.stage()
    client.channel.requests.memory(sequence).payload[:] = 0xEE

    engine.launch()
    engine.finish()

    assert engine.device.registered
    np.testing.assert_array_equal(client.reply(sequence)["y"], np.full(100, 6.0))


def test_a_failed_request_is_not_read_again(direct: DeviceEngine) -> None:
    def fails(observations: list[Any]) -> list[Any]:
        raise LookupError("asked to")

    model(direct).answer = fails
    sequence = direct.clients[0].submit(x(1))
    direct.run()
    write_again(direct, sequence)

    direct.device.synchronize()


def test_a_request_that_leaves_a_staged_batch_is_not_read_any_more(direct: DeviceEngine) -> None:
    first, second, third = direct.clients
    first.submit(x(1))
    direct.stage()
    direct.launch()
    cancelled, staged = second.submit(x(2)), third.submit(x(3))
    direct.stage(ahead=True)
    second.channel.requests.cancel(cancelled)
    direct.finish()

    assert direct.launch()
    write_again(direct, cancelled, client=1)
    direct.finish()
    write_again(direct, staged, client=2)

    direct.device.synchronize()


def test_a_client_that_goes_while_its_request_is_copied_is_unregistered_after_that(direct: DeviceEngine) -> None:
    assert direct.device.registered
    client = direct.clients.pop(0)
    client.submit(x(1))
    client.state.look(time.monotonic_ns())
    direct.serving.stage(client.state, client.state.waiting.popleft(), ahead=True)

    client.close()

    assert len(direct.device.registered) == 2


def test_a_direct_copy_ahead_waits_for_the_model_before_it(direct: DeviceEngine) -> None:
    def answer(observations: list[Any]) -> list[Any]:
        direct.device.reads(observations[0]["x"])
        return [{"y": np.ones(3)} for _ in observations]

    model(direct).answer = answer
    for turn in range(6):
        sent = [client.submit(x(turn)) for client in direct.clients]
        direct.stage(ahead=turn > 0)
        direct.launch()
        direct.finish()
        assert direct.clients[0].status(sent[0]) == Status.OK
    assert {ahead for _, ahead in direct.device.copies_in} == {True, False}


def test_two_batches_are_in_two_memories(engine: DeviceEngine) -> None:
    first, second, third = engine.clients
    a = first.submit(x(1))
    engine.stage()
    engine.launch()
    b = second.submit(x(2))
    engine.stage(ahead=True)
    engine.finish()
    c = third.submit(x(3))
    engine.stage()
    engine.launch()
    engine.finish()

    for client, sequence, value in ((first, a, 2.0), (second, b, 4.0), (third, c, 6.0)):
        np.testing.assert_array_equal(client.reply(sequence)["y"], np.full(100, value))


def test_memory_without_kept_tensors_is_reused(engine: DeviceEngine) -> None:
    def fails(observations: list[Any]) -> list[Any]:
        raise failures.pop()

    failures: list[BaseException] = [LookupError("no"), *(make() for make in SHORT.values()), SystemExit(3)]
    before = [arena.memory.data_ptr() for arena in engine.context.arenas]
    while failures:
        model(engine).answer = fails
        engine.clients[0].submit(x(1))
        engine.run()
        model(engine).answer = Model.double
        assert_serves(engine)
        assert [arena.memory.data_ptr() for arena in engine.context.arenas] == before


def test_a_recorded_policy_uses_the_same_memory_for_ever() -> None:
    engine = DeviceEngine(POLICIES / "recordable")
    before = [arena.memory.data_ptr() for arena in engine.context.arenas]
    for turn in range(4):
        sent = [client.submit({"x": np.full((3, 8), turn, np.float32)}) for client in engine.clients]
        engine.run()
        for client, sequence in zip(engine.clients, sent, strict=True):
            assert client.reply(sequence)["y"][1] == 24 * turn

    assert [arena.memory.data_ptr() for arena in engine.context.arenas] == before
    engine.close()


class _Bell:
    """Nobody rings; the loop ends when it would wait."""

    names_channels = False

    def __init__(self) -> None:
        self.loop: DeviceLoop | None = None

    def watch(self, state: ChannelState) -> None:
        pass

    forget = watch

    def unmute(self, now_ns: int) -> None:
        pass

    def count(self) -> int:
        return 0

    def take(self) -> None:
        pass

    def wait(self, timeout_ns: int) -> bool:
        assert self.loop is not None
        self.loop.stopped = True
        return False

    def close(self) -> None:
        pass


def test_a_client_that_breaks_its_channel_while_the_device_works_is_let_go_of_after_that(direct: DeviceEngine) -> None:
    bell, broken = _Bell(), []
    bell.loop = made = DeviceLoop(
        bell,
        direct.stats,
        direct.serving,
        SpinBudget(0),
        lambda timeout_s: False,
        lambda channel_info, reason: broken.append(channel_info.identity.channel),
        context=direct.context,
    )
    villain, honest, _ = direct.clients
    model(direct).answer = Model.double
    for client in direct.clients:
        made.add(client.state)
    sent = villain.submit(x(1)), honest.submit(x(2))
    made.serve()

    def answer(observations: list[Any]) -> list[Any]:
        villain.channel.requests.words[villain.state.counter] += 1 << 20
        return Model.double(observations)

    model(direct).answer = answer
    with torch.inference_mode():
        made.run()

    assert broken == [0]
    assert [float(client.reply(sequence)["y"][0]) for client, sequence in zip(direct.clients, sent, strict=False)] == [
        2,
        4,
    ]
    assert len(direct.device.registered) == 2
    assert list(made.states) == [1, 2]
