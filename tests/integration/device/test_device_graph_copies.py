"""Copies that are part of a recorded graph: which ones are, and what happens where they cannot be. On the late GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shmserve.daemon.engine.device_failure import DeviceLost
from tests.gpu.late_tensor import accelerator_error
from tests.support.device_engine import Client, DeviceEngine
from tests.support.device_model import Record

#: Calls of CUDA that follow from how late the late GPU is.
_OF_WAITING = {"query", "synchronize"}


def observation(value: float) -> dict[str, Any]:
    return {"x": np.full((3, 8), value, np.float32)}


def y(client: Client, sequence: int) -> Any:
    return client.reply(sequence)["y"].tolist()


def wanted(value: float) -> list[float]:
    """What the recorded policy gives for `observation(value)`."""
    return [24 * value * weight for weight in range(4)]


def calls(engine: DeviceEngine) -> dict[str, int]:
    """The calls of CUDA for one request, without those of its wait."""
    before = dict(engine.device.gpus.calls)
    sequence = engine.clients[0].submit(observation(3))
    engine.run()
    assert y(engine.clients[0], sequence) == wanted(3)
    after = engine.device.gpus.calls
    made = {name: after[name] - before.get(name, 0) for name in after.keys() - _OF_WAITING}
    return {name: number for name, number in made.items() if number}


def assert_serves(engine: DeviceEngine) -> None:
    """Batches of each size, in each arena."""
    for turn, clients in enumerate((engine.clients, engine.clients[:1], engine.clients[:2]) * 2):
        sent = [(client, client.submit(observation(10 * turn + row))) for row, client in enumerate(clients)]
        engine.run()
        for row, (client, sequence) in enumerate(sent):
            assert y(client, sequence) == wanted(10 * turn + row)


def test_a_request_of_a_recorded_policy_costs_one_launch_and_one_event(record: Record) -> None:
    engine = record("")
    assert_serves(engine)

    assert calls(engine) == {"replay": 1, "record": 1}
    assert engine.context.report()["warnings"] == []


def test_the_rows_of_a_recorded_policy_are_copied_once(record: Record) -> None:
    engine = record("")
    first, second, third = engine.clients
    made = engine.device.gpus.copies_in
    made.clear()
    sent = [(first, first.submit(observation(1)))]
    engine.stage()
    engine.launch()
    sent.append((second, second.submit(observation(2))))
    engine.stage(ahead=True)
    engine.finish()
    engine.launch()
    sent += [(client, client.submit(observation(3 + row))) for row, client in enumerate((first, third))]
    engine.stage(ahead=True)
    engine.finish()
    sent.append((second, second.submit(observation(5))))
    engine.stage()
    engine.launch()
    engine.finish()

    assert [y(client, sequence) for client, sequence in sent] == [wanted(value) for value in range(1, 6)]
    # By the graph; ahead of the second batch; ahead of the third one, of which one row is sent with the launch.
    assert made == [(128, False), (128, True), (256, True), (128, False)]


def test_rows_that_are_read_from_their_clients_memory_are_not_copied_by_a_graph(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = record("", register_bytes=1)
    made = engine.device.gpus.copies_in
    for staged in (None, 0, 1, 2):
        made.clear()
        with monkeypatch.context() as patched:
            if staged is not None:  # a client whose memory is not registered yet
                patched.setattr(engine.clients[staged].state, "registered", None)
            sent = [(client, client.submit(observation(row))) for row, client in enumerate(engine.clients)]
            engine.run()

        assert [y(client, sequence) for client, sequence in sent] == [wanted(row) for row in range(3)]
        assert sum(size > 96 for size, _ in made) == (staged is not None)
        assert len(made) == 3


def test_the_hosts_memory_is_not_overwritten_while_a_graph_copies_it(record: Record) -> None:
    engine = record("import numpy; return [{'y': numpy.arange(4.0)} for _ in observations]")  # nobody waits for it
    for turn in range(6):
        sequence = engine.clients[0].submit(observation(turn))
        engine.run()
        assert y(engine.clients[0], sequence) == [0, 1, 2, 3]

    engine.device.synchronize()


def test_a_recorded_policy_whose_result_is_the_hosts_own_needs_no_wait(record: Record) -> None:
    engine = record("import numpy; return [{'y': numpy.arange(4.0)} for _ in observations]")
    sequence = engine.clients[0].submit(observation(3))
    engine.stage()
    engine.launch()

    assert not engine.context.results.pending

    engine.finish()
    assert y(engine.clients[0], sequence) == [0, 1, 2, 3]


def test_a_result_of_a_recorded_policy_that_waits_for_room_is_not_overwritten(record: Record) -> None:
    engine = record("return [{'y': row.repeat(100)} for row in x]")
    client, other, _ = engine.clients
    deferred = client.submit(observation(1))
    engine.run()
    other.submit(observation(2))
    engine.run()

    _, found = client.state.deferred_replies[deferred]
    assert found["y"].tolist() == [1.0] * 2400


def test_the_results_of_all_graphs_are_in_one_memory(record: Record) -> None:
    engine = record(
        "return [{'y': row.repeat(3000)} for row in x]"
    )  # of four rows 192000 bytes, more than the first memory

    assert engine.context.host.pinned_bytes == engine.device.gpus.pinned_bytes


@pytest.mark.parametrize("line", ["", "x = x * torch.ones_like(x).bernoulli_(1.0)"], ids=["as it is", "with noise"])
def test_copies_that_cannot_be_recorded_are_made_outside_of_the_graph_and_that_is_said_once(
    record: Record, line: str
) -> None:
    there = "there = self.__dict__.setdefault('there', torch.ones(4, device='cuda:1'))"
    engine = record(
        f"{line or 'pass'}; {there}; return [{{'y': row, 'there': there}} for row in x @ self._weights]", devices=2
    )

    assert_serves(engine)
    found = calls(engine)
    assert (found["copy_in"], found["copy_out"]) == (1, 2)
    (warning,) = engine.context.report()["warnings"]
    assert "the copies of a request cannot be recorded" in warning and "uncaptured work" in warning


def test_pageable_memory_is_copied_outside_of_the_graph(record: Record) -> None:
    engine = record("", pin_limit=5000)

    assert_serves(engine)
    found = calls(engine)
    assert (found["copy_in"], found["copy_out"]) == (1, 1)
    report = engine.context.report()
    assert report["staging"] == "pageable"
    assert all("cannot be page-locked" in warning for warning in report["warnings"])


def test_a_graph_that_cannot_be_launched_fails_no_request_of_a_batch(record: Record) -> None:
    engine = record("")
    sent = [(client, client.submit(observation(row))) for row, client in enumerate(engine.clients)]
    engine.device.gpus.fail("replay", lambda: accelerator_error("CUDA error: out of memory", 2))
    engine.run()

    for row, (client, sequence) in enumerate(sent):
        assert y(client, sequence) == wanted(row)
    assert_serves(engine)


def test_a_device_that_was_lost_before_a_graph_is_launched_fails_no_request(record: Record) -> None:
    engine = record("")
    sequence = engine.clients[0].submit(observation(1))
    engine.stage()
    engine.device.gpus.poison = "unspecified launch failure"

    with pytest.raises(DeviceLost):
        engine.launch()
    assert engine.clients[0].head(sequence) is None, "it is the next engine's to answer"
