"""Clients' memory that a device reads directly: registered beside the serving thread, and given up before it is unmapped."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.daemon.engine.device.pinned_pool import PinnedPool
from shmserve.daemon.engine.device.registration import THREAD, Registrar
from shmserve.daemon.engine.real_time_priority import SERVICE_THREADS
from tests.support.device_engine import DeviceEngine
from tests.support.device_model import Made, x
from tests.support.late_device import LateDevice


class Gate:
    """Holds registrations back until it is opened; knows which calls began, and where."""

    def __init__(self) -> None:
        self.open = threading.Event()
        #: The calls, and whether the serving thread made them.
        self.calls: list[tuple[str, bool]] = []
        self._serving = threading.current_thread()

    def __call__(self, call: str) -> None:
        self.calls.append((call, threading.current_thread() is self._serving))
        self.open.wait(10)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def held(make: Made, gate: Gate) -> DeviceEngine:
    """An engine whose clients have attached while no registration ends."""
    return make(register_bytes=1, clients=2, settled=False, began=gate)


def answered(engine: DeviceEngine, value: float) -> Any:
    sequence = engine.clients[0].submit(x(value))
    engine.run()
    return engine.clients[0].reply(sequence)["y"]


def test_a_client_is_served_while_its_memory_is_registered(held: DeviceEngine, gate: Gate) -> None:
    np.testing.assert_array_equal(answered(held, 3), np.full(100, 6.0))
    assert held.context.report()["registered_channels"] == 0

    gate.open.set()
    held.settle()

    np.testing.assert_array_equal(answered(held, 4), np.full(100, 8.0))
    found = held.context.report()
    assert found["registered_channels"] == 2
    assert found["registered_bytes"] == sum(held.device.gpus.registered.values())
    assert gate.calls == [("register", False)] * 2


def test_the_first_request_is_staged_and_later_ones_are_not(held: DeviceEngine, gate: Gate) -> None:
    host = held.context.arenas[0].host, held.context.arenas[1].host
    for memory in host:
        memory.fill_(0)
    answered(held, 3)
    assert any(memory.any() for memory in host)
    for memory in host:
        memory.fill_(0)
    gate.open.set()
    held.settle()

    answered(held, 4)

    assert not any(memory.any() for memory in host)


def test_a_client_that_leaves_does_not_wait_and_is_unregistered_before_its_memory_is_unmapped(
    held: DeviceEngine, gate: Gate
) -> None:
    gate.open.set()
    held.settle()
    gate.open.clear()
    answered(held, 3)
    held.clients[0].state.close()  # as after kill -9 or an eviction
    assert len(held.device.gpus.registered) == 2

    gate.open.set()
    held.settle()

    assert len(held.device.gpus.registered) == 1
    assert held.context.report()["registered_channels"] == 1
    assert gate.calls == [("register", False), ("register", False), ("unregister", False)]


def test_copies_that_no_event_marks_are_waited_for(held: DeviceEngine, gate: Gate) -> None:
    gate.open.set()
    held.settle()
    client = held.clients[0]
    client.submit(x(1))
    client.state.look(0)
    held.serving.stage(client.state, client.state.waiting.popleft(), ahead=True)
    held.device.gpus.fail("record", lambda: torch.OutOfMemoryError("CUDA out of memory."))

    client.state.close()
    held.settle()

    assert len(held.device.gpus.registered) == 1


def test_a_client_that_leaves_before_its_turn_is_not_registered(held: DeviceEngine, gate: Gate) -> None:
    held.clients[1].state.close()  # the first client's registration is under way
    gate.open.set()
    held.settle()
    assert gate.calls == [("register", False)]


def test_a_client_that_leaves_while_it_is_registered_is_unregistered(held: DeviceEngine, gate: Gate) -> None:
    held.clients[0].state.close()
    gate.open.set()
    held.settle()
    assert len(held.device.gpus.registered) == held.context.report()["registered_channels"] == 1


def test_after_a_failure_clients_are_served_and_nothing_more_is_registered(
    held: DeviceEngine, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    held.device.gpus.runtime.refuse_at = 0
    gate.open.set()
    held.settle()

    np.testing.assert_array_equal(answered(held, 3), np.full(100, 6.0))
    found = held.context.report()
    assert found["registered_channels"] == 0 and found["register_bytes"] is None
    assert "cannot be registered" in found["warnings"][0]
    assert gate.calls == [("register", False)]


def test_an_unexpected_error_does_not_end_the_thread(
    held: DeviceEngine, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise KeyError("nobody thought of it")

    gate.open.set()
    held.context.registrar.submit(fails)
    held.settle()
    assert "nobody thought of it" in caplog.text


def test_changes_are_reported_once(held: DeviceEngine, gate: Gate) -> None:
    assert not held.context.registrar.take_change()
    gate.open.set()
    held.settle()
    assert held.context.registrar.take_change()
    assert not held.context.registrar.take_change()


def test_the_thread_ends_with_its_registrar() -> None:
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == THREAD]

    with LateDevice() as device:
        before = threads()
        registrar = Registrar(device, PinnedPool(device), 1)
        (mine,) = set(threads()) - set(before)
        assert not mine.name.startswith(SERVICE_THREADS), "it keeps normal priority: nobody waits for it"
        del registrar
        gc.collect()
        mine.join(10)
        assert not mine.is_alive()
        Registrar(device, PinnedPool(device), None)
        assert set(threads()) <= set(before)
