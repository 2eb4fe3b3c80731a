"""Several requests in one call of a saved module: each gets what it would get alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.daemon.engine.models.arguments import AnyField, Arguments, Field
from shmserve.daemon.engine.models.rows import split, stacked
from shmserve.daemon.engine.models.saved_module import SavedModule
from tests.support.late_device import LateDevice


class Thing:
    """What a trusted client may send."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __rmul__(self, other: Any) -> Any:
        return other * self.factor


def module() -> SavedModule:
    """Multiplies `x`, a tensor, by `by`, which is none."""
    package: Any = SimpleNamespace(batch_dim=True, max_batch=4, outputs=None, path=Path("p"), metadata={}, grad=False)
    fields = [Field(name, (), AnyField()) for name in ("x", "by")]
    return SavedModule(package, Arguments(fields), lambda values: values[0] * values[1])


@pytest.mark.parametrize(
    "factors",
    [
        [1.0, 2.0, 1.0],
        [np.float64(1), np.float64(2), np.float64(1)],
        [np.float32(0.5), np.float32(0.25), 3],
        [0.0, -0.0, 0.0],
        [Thing(2.0), Thing(3.0), Thing(4.0)],
        [True, 1, 1.0],
    ],
    ids=["float", "float64", "float32", "zeros", "objects", "types"],
)
def test_a_number_in_one_row_is_not_the_number_of_another(factors: list[Any]) -> None:
    rows = [{"x": torch.full((3,), float(row + 1)), "by": factor} for row, factor in enumerate(factors)]

    together = module().infer(rows)

    for row, action in zip(rows, together, strict=True):
        (alone,) = module().infer([row])
        assert torch.equal(action["action"], alone["action"])
        assert torch.equal(torch.signbit(action["action"]), torch.signbit(alone["action"]))


def test_rows_are_taken_apart_where_they_are() -> None:
    actions = torch.arange(8.0).view(4, 2)

    rows = split({"action": actions, "more": [actions.view(4, 2, 1)]}, 4)

    assert [row["action"].data_ptr() for row in rows] == [actions[index].data_ptr() for index in range(4)]


def test_rows_are_not_brought_to_the_host_one_call_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cpu", None)

    assert split({"action": torch.zeros(1, 7)}, 1)[0]["action"].shape == (7,)


def test_rows_of_a_gpu_stay_there_and_nothing_waits_for_them() -> None:
    with LateDevice() as device:
        action = {"y": torch.arange(6.0, device="cuda").reshape(2, 3) * 2}
        first, second = split(action, 2)

        assert first["y"].device == second["y"].device == device.torch_device
        assert device.gpus.blocked == 0
        assert second["y"].tolist() == [6, 8, 10]


@pytest.mark.parametrize("count", [1, 3])
def test_rows_in_one_piece_of_a_gpus_memory_become_a_batch_without_a_copy(count: int) -> None:
    with LateDevice() as device:
        memory = device.memory(64 * count)
        rows = [memory[64 * row : 64 * row + 64].view(torch.float32) for row in range(count)]

        assert stacked(rows).data_ptr() == memory.data_ptr()
        assert stacked(rows).shape == (count, 16)
