"""What can be recorded as a graph and what cannot, and how that is said. On the late GPU, in this process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shmserve.errors import ModelPackageError
from shmserve.protocol import Status
from tests.support.device_engine import DeviceEngine
from tests.support.device_model import Record


def action(engine: DeviceEngine) -> Any:
    client = engine.clients[0]
    sequence = client.submit({"x": np.ones((3, 8), np.float32)})
    engine.run()
    return client.reply(sequence)["y"].tolist()


def test_a_policy_that_draws_noise_on_the_device_is_recorded_and_served_with_other_noise_each_time(
    record: Record,
) -> None:
    engine = record("x = x + torch.randn_like(x)")

    found = [tuple(action(engine)) for _ in range(6)]

    assert len(set(found)) == 6


def test_the_seed_of_a_comparison_does_not_affect_later_draws(record: Record) -> None:
    found = []
    for start in (5, 6):
        torch.manual_seed(start)
        found.append(action(record("x = x * torch.rand_like(x)")))

    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "x = x * x.sum().item()",
            r"recorded \(line 20 of policy.py, `x = x \* x.sum\(\).item\(\)`\): AcceleratorError: .* when stream is capturing;",
        ),
        (
            "try: {}['no']\n        except KeyError: x = x * x.sum().item()",
            r"cannot be recorded \(line 21 of policy.py.*stream is capturing;",
        ),
        ("self.calls += 1; x = x * self.calls", "gives another action than a direct call"),
        ("import random; x = x * random.random()", "gives another action than a direct call"),
        ("import numpy; x = x * numpy.random.rand()", "gives another action than a direct call"),
    ],
)
def test_a_recording_that_fails_is_refused_with_the_error_and_line_of_the_policy(
    record: Record, line: str, said: str
) -> None:
    with pytest.raises(ModelPackageError, match=said):
        record(line)


@pytest.mark.parametrize("shape", [(3, 7), (4, 8), (8, 3), (3, 8, 1), (0, 8)], ids=str)
def test_a_recording_refuses_other_sizes_of_its_structure(record: Record, shape: tuple[int, ...]) -> None:
    engine = record("")
    before = action(engine)
    client = engine.clients[0]
    sequence = client.submit({"x": np.ones(shape, np.float32)})
    engine.run()

    assert client.status(sequence) == Status.REJECTED
    kind, said = client.reply(sequence)
    assert kind == "ContractMismatch"
    assert f"x: float32[3, 8] -> float32{list(shape)}" in said
    assert action(engine) == before


def test_a_recording_refuses_sizes_that_do_not_describe_the_payload(record: Record) -> None:
    engine = record("")
    client = engine.clients[0]
    sequence = client.submit({"x": np.ones((3, 8), np.float32)}, payload_bytes=64)
    engine.run()

    assert client.status(sequence) == Status.REJECTED
    assert client.reply(sequence)[0] == "MetadataError"
