"""A single number reaches a saved module as the module takes it, however the robot wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shmserve.daemon.engine.models.arguments import AnyField, Arguments, ConstantField, Field, NumberField, TensorField
from shmserve.daemon.engine.models.example_files import read_recorded
from shmserve.daemon.engine.models.torchscript import _like
from shmserve.errors import ContractMismatch


def given(wanted: Any, value: Any) -> Any:
    """What a module that wants this gets of an observation that holds the value."""
    (found,) = Arguments([Field("x", (), wanted)]).of({"x": value})
    return found


@pytest.mark.parametrize(
    ("wanted", "values", "taken"),
    [
        (NumberField(float), [2.0, 2, np.float32(2), np.int64(2), torch.tensor(2.0), torch.tensor(2)], 2.0),
        (NumberField(int), [2, np.int64(2), np.uint8(2), torch.tensor(2)], 2),
        (NumberField(bool), [True, np.bool_(True), torch.tensor(True)], True),
        (ConstantField(2.0), [2.0, 2, np.float32(2), torch.tensor(2)], 2.0),
        (AnyField(), [2, np.int64(2)], 2),
    ],
    ids=str,
)
def test_a_number_of_the_kind_is_the_number_that_the_module_takes(wanted: Any, values: list[Any], taken: Any) -> None:
    for value in values:
        found = given(wanted, value)

        assert type(found) is type(taken) and found == taken


@pytest.mark.parametrize("recorded", [np.array(0.5, np.float32), 0.5, 3, np.array(3, np.int32)], ids=repr)
def test_a_tensor_without_dimensions_takes_a_number_of_its_kind(recorded: Any) -> None:
    wanted = _like(recorded)
    for value in (
        recorded,
        np.asarray(recorded)[()],
        torch.from_numpy(np.asarray(recorded)),
        np.asarray(recorded).item(),
    ):
        found = given(wanted, value if not isinstance(value, np.ndarray) else torch.from_numpy(value))

        assert (found.dtype, found.dim(), found.item()) == (wanted.dtype, 0, np.asarray(recorded).item())


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        (NumberField(int), 2.0),
        (NumberField(int), True),
        (NumberField(float), "2"),
        (NumberField(float), torch.tensor([2.0])),
        (ConstantField(2), 3),
        (ConstantField("fold"), 2),
        (TensorField(torch.int64, ()), 2.5),
        (TensorField(torch.float32, (), None), True),
        (TensorField(torch.float32, None, 1), 2.5),
        (TensorField(torch.float32, None, 1), torch.zeros(1, dtype=torch.float64)),
    ],
    ids=str,
)
def test_a_number_of_another_kind_is_refused(wanted: Any, value: Any) -> None:
    with pytest.raises(ContractMismatch, match="x: expected"):
        given(wanted, value)


def test_an_example_gives_back_the_numbers_and_texts_that_were_put_in(tmp_path: Path) -> None:
    put_in = {"rate": 16000, "gain": 0.5, "on": True, "task": "fold", "half": np.float32(0.5), "state": np.zeros(1)}
    np.savez(tmp_path / "example.npz", allow_pickle=True, **put_in)

    found = read_recorded(tmp_path / "example.npz")

    assert {name: found[name] for name in ("rate", "gain", "on", "task")} == {
        name: put_in[name] for name in ("rate", "gain", "on", "task")
    }
    assert [type(found[name]) for name in ("rate", "gain", "on")] == [int, float, bool]
    assert (found["half"].dtype, found["half"].shape, found["state"].shape) == (np.float32, (), (1,))
