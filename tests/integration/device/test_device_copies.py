"""Copies under way on a device: memory is not written to or reused before they end. On the late GPU."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.daemon.engine.channel.channel_state import ChannelState
from shmserve.daemon.engine.device.context import WarmUpStaging
from shmserve.daemon.engine.device.loop import DeviceLoop
from shmserve.protocol import Status
from shmserve.spin import SpinBudget
from tests.support.daemon_process import POLICIES
from tests.support.device_engine import DeviceEngine
from tests.support.device_model import SHORT, Made, Model, assert_serves, model, x

# What a policy does to its tensors


def test_a_policy_may_change_the_shape_of_what_it_gets(engine: DeviceEngine) -> None:
    shapes: list[Any] = []

    def answer(observations: list[Any]) -> list[Any]:
        for observation in observations:
            shapes.append(tuple(observation["x"].shape))
            assert not hasattr(observation["x"], "note")
            observation["x"].unsqueeze_(0).note = "mine"
        return Model.double(observations)

    model(engine).answer = answer
    for turn in range(6):
        sequence = engine.clients[0].submit(x(turn))
        engine.run()
        assert engine.clients[0].status(sequence) == Status.OK

    assert shapes == [(100,)] * 6


def test_an_action_on_another_gpu_is_brought_over_first(make: Made) -> None:
    engine = make(devices=2)

    def answer(observations: list[Any]) -> list[Any]:
        return [{"y": found["y"].to("cuda:1")} for found in Model.double(observations)]

    model(engine).answer = answer
    assert_serves(engine)


def test_a_policy_that_leaves_another_gpu_current_does_not_move_the_engine(make: Made) -> None:
    engine = make(devices=2)

    def answer(observations: list[Any]) -> list[Any]:
        torch.cuda.set_device(1)
        return Model.double(observations)

    model(engine).answer = answer
    assert_serves(engine)
    assert torch.cuda.current_device() == 0


def test_a_policy_that_changes_the_stream_gets_its_own_action_back(engine: DeviceEngine) -> None:
    def answer(observations: list[Any]) -> list[Any]:
        torch.cuda.set_stream(torch.cuda.Stream())
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        return Model.double(observations)

    model(engine).answer = answer
    assert_serves(engine)


# Copies that are under way


def test_memory_that_a_failed_model_still_reads_is_not_written_to_ahead(engine: DeviceEngine) -> None:
    client, other, third = engine.clients

    def fails(observations: list[Any]) -> list[Any]:
        observations[0]["x"] * 2
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

    assert engine.device.gpus.registered
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
    assert direct.device.gpus.registered
    client = direct.clients.pop(0)
    client.submit(x(1))
    client.state.look(time.monotonic_ns())
    direct.serving.stage(client.state, client.state.waiting.popleft(), ahead=True)

    client.close()
    direct.settle()

    assert len(direct.device.gpus.registered) == 2


def test_a_direct_copy_ahead_waits_for_the_model_before_it(direct: DeviceEngine) -> None:
    def answer(observations: list[Any]) -> list[Any]:
        observations[0]["x"] * 2
        return [{"y": np.ones(3)} for _ in observations]

    model(direct).answer = answer
    for turn in range(6):
        sent = [client.submit(x(turn)) for client in direct.clients]
        direct.stage(ahead=turn > 0)
        direct.launch()
        direct.finish()
        assert direct.clients[0].status(sent[0]) == Status.OK
    assert {ahead for _, ahead in direct.device.gpus.copies_in} == {True, False}


def test_two_batches_are_in_two_memories(engine: DeviceEngine) -> None:
    first, second, third = engine.clients
    before = [arena.memory.data_ptr() for arena in engine.context.arenas]
    a = first.submit(x(1))
    engine.stage()
    engine.launch()
    b = second.submit(x(2))
    engine.stage(ahead=True)
    engine.finish()
    c, d = third.submit(x(3)), third.submit(x(4))
    engine.stage()
    engine.launch()
    engine.finish()

    for client, sequence, value in ((first, a, 2.0), (second, b, 4.0), (third, c, 6.0), (third, d, 8.0)):
        np.testing.assert_array_equal(client.reply(sequence)["y"], np.full(100, value))
    assert [arena.memory.data_ptr() for arena in engine.context.arenas] == before


def test_any_number_of_batches_fit_where_one_does(engine: DeviceEngine) -> None:
    for _ in range(15):
        assert_serves(engine)


def test_rows_that_run_alone_are_waited_for(engine: DeviceEngine) -> None:
    def answer(observations: list[Any]) -> list[Any]:
        if len(observations) > 1:
            raise LookupError("not together")
        return Model.double(observations)

    model(engine).answer = answer
    assert_serves(engine)


def test_a_result_that_waits_for_room_is_not_overwritten(engine: DeviceEngine) -> None:
    client, other, _ = engine.clients

    def answer(observations: list[Any]) -> list[Any]:
        return [{"y": observation["x"].repeat(20)} for observation in observations]

    model(engine).answer = answer
    deferred = client.submit(x(1))
    engine.run()
    other.submit(x(2))
    engine.run()

    _, found = client.state.deferred_replies[deferred]
    assert found["y"].tolist() == [1.0] * 2000


def test_the_warm_up_reads_actions_after_they_have_arrived(engine: DeviceEngine) -> None:
    found = WarmUpStaging(engine.context).settle({"y": torch.ones(3, device="cuda") * 2})

    assert found["y"].tolist() == [2, 2, 2]


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
    """Nobody rings; the loop polls after its first waits, and ends with the third."""

    names_channels = False

    def __init__(self) -> None:
        self.loop: DeviceLoop | None = None
        self._waits = 0

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
        time.sleep(timeout_ns / 1e9)  # the loop polls channels that do not ring only so often
        self._waits += 1
        self.loop.stopped = self._waits == 3
        return False

    def close(self) -> None:
        pass


def _loop(engine: DeviceEngine, broken: list[int]) -> DeviceLoop:
    """Return a loop over the engine's channels that collects the channels it gives up in `broken`."""
    for client in engine.clients:  # the structure is new once: on a busy machine its client would rest for that
        client.submit(x(0))
    engine.run()
    for client in engine.clients:
        client.state.overhead.until_ns = 0
    bell = _Bell()
    bell.loop = made = DeviceLoop(
        bell,
        engine.stats,
        engine.serving,
        SpinBudget(0),
        lambda timeout_s: False,
        lambda channel_info, reason: broken.append(channel_info.identity.channel),
        context=engine.context,
    )
    for client in engine.clients:
        made.add(client.state)
    return made


def test_a_request_that_arrives_while_the_device_works_loses_none_that_is_on_it(direct: DeviceEngine) -> None:
    made = _loop(direct, [])
    first, other, _ = direct.clients
    model(direct).answer = Model.double
    sent = [(first, first.submit(x(1))), (other, other.submit(x(2)))]
    made.serve()

    def answer(observations: list[Any]) -> list[Any]:
        if len(sent) == 2:
            sent.append((first, first.submit(x(3))))  # the only one that the loop finds meanwhile
        return Model.double(observations)

    model(direct).answer = answer
    with torch.inference_mode():
        made.run()

    assert [float(client.reply(sequence)["y"][0]) for client, sequence in sent] == [2, 4, 6]


def test_a_request_that_arrives_while_the_device_works_is_copied_meanwhile(engine: DeviceEngine) -> None:
    made = _loop(engine, [])
    first, other, _ = engine.clients
    sent = [(first, first.submit(x(1))), (other, other.submit(x(2)))]
    made.serve()

    def answer(observations: list[Any]) -> list[Any]:
        # The third runs alone; the fourth is of a client that has none on the device then.
        if len(sent) < 4:
            client = first if len(sent) == 2 else other
            sent.append((client, client.submit(x(len(sent) + 1))))
        return Model.double(observations)

    model(engine).answer = answer
    with torch.inference_mode():
        made.run()

    assert [float(client.reply(sequence)["y"][0]) for client, sequence in sent] == [2, 4, 6, 8]
    assert [ahead for _, ahead in engine.device.gpus.copies_in][-2:] == [False, True]


def test_a_client_that_breaks_its_channel_while_the_device_works_is_let_go_of_after_that(direct: DeviceEngine) -> None:
    broken: list[int] = []
    made = _loop(direct, broken)
    villain, honest, _ = direct.clients
    model(direct).answer = Model.double
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
    direct.settle()
    assert len(direct.device.gpus.registered) == 2
    assert list(made.states) == [1, 2]
