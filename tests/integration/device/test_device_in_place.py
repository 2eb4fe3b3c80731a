"""Policies that read clients' memory where it is, on a device that shares the memory of the host. On the late GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.daemon.engine.device.in_place import may_read_in_place
from shmserve.errors import ModelPackageError
from shmserve.protocol import Flag, Status
from tests.support.daemon_process import POLICIES, Daemon, wait_until
from tests.support.device_engine import DeviceEngine
from tests.support.device_model import Made, Model, assert_serves, model, x
from tests.support.late_device import LateDevice

#: How kernels reach registered memory.
POINTERS = [pytest.param(True, id="by the host's address"), pytest.param(False, id="by another address")]


@pytest.fixture
def reading(make: Made) -> DeviceEngine:
    return make(integrated=True, register_bytes=1, in_place=True)


def write_again(engine: DeviceEngine, sequence: int) -> None:
    """What the first client may do with a slot whose request is answered."""
    assert engine.clients[0].head(sequence) is not None
    engine.clients[0].channel.requests.memory(sequence).payload[:] = 0xEE


@pytest.mark.parametrize("uses_host_pointers", POINTERS)
def test_nothing_is_copied_to_the_device(make: Made, uses_host_pointers: bool) -> None:
    engine = make(integrated=True, uses_host_pointers=uses_host_pointers, register_bytes=1, in_place=True)
    for _ in range(3):
        assert_serves(engine)
    tree = {**x(1), "text": "a", "n": 3, "many": np.arange(5)}
    model(engine).answer = lambda rows: [{"n": len(row["text"]) + row["n"], "y": row["many"] + 1} for row in rows]
    sequence = engine.clients[0].submit(tree)
    engine.run()

    assert engine.clients[0].reply(sequence)["n"] == 4
    assert engine.clients[0].reply(sequence)["y"].tolist() == [1, 2, 3, 4, 5]
    head = engine.clients[0].head(sequence)
    assert head is not None and head.flags & Flag.IN_PLACE
    assert engine.device.gpus.copies_in == []
    assert engine.context.report()["in_place"] is True
    assert engine.context.report()["warnings"] == []


def own(rows: list[Any]) -> list[Any]:
    for row in rows:
        row["x"] * 2
    return [{"y": np.ones(3)} for _ in rows]


def fails(rows: list[Any]) -> list[Any]:
    own(rows)
    raise LookupError("after its first kernels")


def fails_together(rows: list[Any]) -> list[Any]:
    return fails(rows) if len(rows) > 1 else own(rows)


@pytest.mark.parametrize("answer", [own, fails, fails_together, Model.double])
@pytest.mark.parametrize("count", [1, 3])
def test_a_request_is_answered_after_the_model_has_read_it(
    reading: DeviceEngine, answer: Callable[[list[Any]], list[Any]], count: int
) -> None:
    model(reading).answer = answer
    for turn in range(3):
        sent = [client.submit(x(turn)) for client in reading.clients[:count]]
        reading.run()
        write_again(reading, sent[0])
        reading.device.synchronize()

    assert reading.context.report()["in_place"] is True


def test_a_request_that_an_engine_died_of_does_not_run_again(reading: DeviceEngine) -> None:
    client = reading.clients[0]
    sequence = client.submit(x(1))
    client.state.channel.replies.take(sequence)  # as the engine that died did
    reading.run()

    assert client.status(sequence) == Status.ENGINE_LOST
    assert_serves(reading)


@pytest.mark.parametrize(
    "late", [{"registers": False}, {"uses_host_pointers": False, "maps_registered": False}], ids=str
)
def test_memory_that_the_device_cannot_read_is_copied_and_that_is_said(make: Made, late: dict[str, bool]) -> None:
    engine = make(integrated=True, register_bytes=1, in_place=True, **late)

    assert_serves(engine)
    assert engine.device.gpus.copies_in
    report = engine.context.report()
    assert report["in_place"] is False
    assert len(report["warnings"]) == 1


def test_what_a_policy_keeps_is_not_unregistered_and_the_next_requests_are_copied(reading: DeviceEngine) -> None:
    kept: list[torch.Tensor] = []

    def answer(rows: list[Any]) -> list[Any]:
        kept.append(rows[0]["x"])
        return Model.double(rows)

    model(reading).answer = answer
    client = reading.clients[0]
    client.submit(x(1))
    reading.run()
    model(reading).answer = Model.double
    assert_serves(reading)

    assert reading.device.gpus.copies_in
    report = reading.context.report()
    assert report["in_place"] is False
    assert "keeps a tensor" in report["warnings"][0]
    reading.clients.pop(0).close()
    reading.settle()
    assert len(reading.device.gpus.registered) == 3
    assert kept[0].shape == (100,)
    address = reading.device.gpus.runtime.registration(kept[0].data_ptr(), 1)
    assert address is not None
    reading.device.gpus.registered.pop(address)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("observation['x'].mul_(2)", "writes to its observation"),
        ("self.kept = observation", "keeps a tensor"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("uses_host_pointers", POINTERS)
def test_the_warm_up_refuses_a_policy_that_breaks_its_promise(
    line: str, said: str, uses_host_pointers: bool, tmp_path: Path
) -> None:
    package = in_place_package(tmp_path, line)
    device = LateDevice(integrated=True, uses_host_pointers=uses_host_pointers)
    if said:
        with device, pytest.raises(ModelPackageError, match=said):
            DeviceEngine(package, device=device, register_bytes=1, in_place=True)
        return
    engine = DeviceEngine(package, device=device, register_bytes=1, in_place=True)
    sequence = engine.clients[0].submit({"x": np.ones((3, 8), np.float32)})
    engine.run()
    assert engine.clients[0].reply(sequence)["y"].tolist() == [0, 24, 48, 72]
    assert engine.device.gpus.copies_in == []
    engine.close()


def in_place_package(folder: Path, line: str = "") -> Path:
    package = shutil.copytree(POLICIES / "recordable", folder / "package")
    manifest = (package / "model.toml").read_text().replace("cuda_graph = true", "read_in_place = true")
    (package / "model.toml").write_text(manifest)
    text = (package / "policy.py").read_text()
    text = text.replace(
        "x = torch.stack", f"for observation in observations:\n            {line or 'pass'}\n        x = torch.stack"
    )
    (package / "policy.py").write_text(text)
    return package


def test_without_an_example_the_first_client_shows_whether_memory_can_be_read(tmp_path: Path) -> None:
    package = in_place_package(tmp_path)
    device = LateDevice(integrated=True, uses_host_pointers=False, maps_registered=False)
    engine = DeviceEngine(package, device=device, register_bytes=1, in_place=True)

    assert engine.context.report()["in_place"] is False
    assert "observations are copied to the device" in engine.context.report()["warnings"][0]
    engine.close()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"read_in_place": False}, False),
        ({"cuda_graph": True}, False),
        ({"trusted_transport": False}, False),
        ({"register_bytes": 0}, False),
        ({"integrated": False}, False),
    ],
    ids=str,
)
def test_when_a_policy_may_read_in_place(changed: dict[str, Any], expected: bool) -> None:
    given = {"read_in_place": True, "cuda_graph": False, "trusted_transport": True, "register_bytes": None, **changed}
    found = SimpleNamespace(**given)
    with LateDevice(integrated=changed.get("integrated", True)) as device:
        assert may_read_in_place(device, found, found) is expected  # type: ignore[arg-type]


def test_a_service_reads_in_place_on_a_device_that_shares_the_hosts_memory(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon(in_place_package(tmp_path), arguments=("--device", "cuda:0"))
    daemon.use_late_cuda(integrated=True)
    daemon.start()
    with daemon.client() as client:
        one, two = (np.full((3, 8), value, np.float32) for value in (1, 2))
        wait_until("the client's memory is read in place", lambda: client.request({"x": one}).in_place)
        found = client.request({"x": two})

    assert found.in_place
    assert found.action["y"].tolist() == [0, 48, 96, 144]
    status = daemon.status()["model"]["gpu"]
    assert (status["in_place"], status["warnings"]) == (True, [])
